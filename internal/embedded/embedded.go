// Package embedded runs the three engines that Tallystick needs — Kafka,
// Postgres and ClickHouse — on the user's own machine, so that one command
// starts everything without any configuration.
//
// What each engine is:
//
//   - Kafka is kfake, the broker written by franz-go's author, in this process
//     with its records on disk and every produce fsync'd ([StartKafka]).
//   - Postgres is the real server, from a pinned npm package or from the
//     system, as a child process on a private directory and a private unix
//     socket ([StartPostgres]).
//   - ClickHouse is the real engine as a shared library (libchdb) in a child
//     process of this very binary, behind ClickHouse's HTTP interface.
//
// What it promises:
//
//   - Children are gone within milliseconds of the parent's death, by whatever
//     signal it died ([StartChild]).
//   - Data directories are reusable after a crash of any of the processes, and
//     a directory that belongs to a live server, to a newer version or to
//     something else is refused with an error that says what to do.
//   - No engine binary is executed or loaded before its SHA-256 equals the one
//     pinned in this package ([FindEngines]).
//   - Nothing listens on anything but the loopback interface or a unix socket
//     in a directory that only the engine's user can enter.
//
// What it never does: it never downloads anything, never relaxes an engine's
// durability settings, never trusts a local connection without a password, and
// never signals a process that it did not start.
package embedded
