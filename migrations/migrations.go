// Package migrations holds the schemas of both databases as numbered SQL files
// and brings a database to the newest of them.
//
// Each Postgres file runs in a transaction, so a migration that is killed
// leaves nothing half done; ClickHouse files are written to be run again. A
// database that a newer binary migrated is refused, never touched.
package migrations
