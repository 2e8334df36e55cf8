package embedded

import (
	"context"
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
)

const (
	mib = 1 << 20
	gib = 1 << 30

	// maxSharedBuffersBytes bounds the embedded server's own cache: it shares
	// the machine with everything else, and the page cache serves the rest.
	maxSharedBuffersBytes = 1 * gib
	minSharedBuffersBytes = 64 * mib
	// maxWALBytes is what the ledger was measured with. On a small disk it is
	// less: the log gets at most an eighth of what is free at the start.
	maxWALBytes = 16 * gib
	minWALBytes = 256 * mib
)

// safeSettings are the settings without which an acknowledged event could be
// lost. They are given on the command line, which outranks every configuration
// file and ALTER SYSTEM, and no option changes them.
var safeSettings = map[string]string{
	"fsync":              "on",
	"synchronous_commit": "on",
	"full_page_writes":   "on",
}

// privateSettings keep the server off the network and row values out of its
// log. No option changes them either.
var privateSettings = map[string]string{
	"listen_addresses":        "",
	"unix_socket_directories": socketDirName,
	"unix_socket_permissions": "0700",
	"port":                    strconv.Itoa(socketPort),
	"password_encryption":     "scram-sha-256",
	"logging_collector":       "off",
	"log_destination":         "stderr",
	"log_line_prefix":         "",
	// "log" keeps LOG, FATAL and PANIC. Error messages may quote row values;
	// the client gets them, the log must not. Terse drops DETAIL lines, which
	// quote whole rows.
	"log_min_messages":        "log",
	"log_min_error_statement": "panic",
	"log_error_verbosity":     "terse",
	"log_statement":           "none",
}

// tunedSettings are the defaults that quality.md measured, scaled to this
// machine; PostgresOptions.Settings may change them.
func tunedSettings(memoryBytes, freeDiskBytes uint64) map[string]string {
	buffers := min(max(memoryBytes/8, minSharedBuffersBytes), maxSharedBuffersBytes)
	wal := min(max(freeDiskBytes/8, minWALBytes), maxWALBytes)
	return map[string]string{
		"shared_buffers":     megabytes(buffers),
		"work_mem":           "32MB", // the rows of a COPY, which the ledger's triggers look at; 4 MB would go to a file
		"max_wal_size":       megabytes(wal),
		"min_wal_size":       megabytes(wal / 4),
		"wal_buffers":        megabytes(min(64*mib, buffers/4)),
		"checkpoint_timeout": "15min",
		"random_page_cost":   "1.1",
		"jit":                "off",
		"wal_compression":    "off",
		"max_connections":    "100",
		"timezone":           "UTC",
		"log_timezone":       "UTC",
		"cluster_name":       "tallystick",
	}
}

func megabytes(bytes uint64) string { return strconv.FormatUint(bytes/mib, 10) + "MB" }

// settingArgs returns the "-c name=value" arguments in a fixed order. User
// settings replace tuned ones; a user setting that is safe or private is
// refused with ErrUnsafeSetting unless it says the same.
func settingArgs(tuned, user map[string]string) ([]string, error) {
	all := maps.Clone(tuned)
	maps.Copy(all, user)
	for _, fixed := range []map[string]string{safeSettings, privateSettings} {
		for name, value := range fixed {
			if given, ok := user[name]; ok && given != value {
				return nil, fmt.Errorf("%w: Postgres %s=%q; the embedded server keeps %q", ErrUnsafeSetting, name, given, value)
			}
			all[name] = value
		}
	}
	var args []string
	for _, name := range slices.Sorted(maps.Keys(all)) {
		if strings.ToLower(name) != name || strings.ContainsAny(name, "= ") {
			return nil, fmt.Errorf("%w: %q is not the lower-case name of a Postgres setting", ErrUnsafeSetting, name)
		}
		args = append(args, "-c", name+"="+all[name])
	}
	return args, nil
}

// AssertSafePostgres reports whether a server, embedded or not, runs with the
// settings that durability rests on (fsync, synchronous_commit,
// full_page_writes all on). show returns the value of one setting as the SQL
// command SHOW gives it; it keeps this package free of a database driver.
//
// Benchmarks call it before they report a figure. Errors: [ErrUnsafeSetting],
// or show's own.
func AssertSafePostgres(ctx context.Context, show func(ctx context.Context, setting string) (string, error)) error {
	for _, name := range slices.Sorted(maps.Keys(safeSettings)) {
		got, err := show(ctx, name)
		if err != nil {
			return fmt.Errorf("reading Postgres setting %s: %w", name, err)
		}
		if got != safeSettings[name] {
			return fmt.Errorf("%w: Postgres runs with %s=%s, it must be %s", ErrUnsafeSetting, name, got, safeSettings[name])
		}
	}
	return nil
}

// machineMemoryBytes returns the memory this process may use: the machine's, or
// the control group's limit when that is lower. Unknown is 1 GiB.
func machineMemoryBytes() uint64 {
	memory := uint64(gib)
	if data, err := os.ReadFile("/proc/meminfo"); err == nil {
		memory = parseMemTotal(string(data), memory)
	}
	for _, path := range []string{"/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"} {
		data, err := os.ReadFile(path)
		if err != nil {
			continue
		}
		if limit, err := strconv.ParseUint(strings.TrimSpace(string(data)), 10, 64); err == nil {
			memory = min(memory, limit)
		}
	}
	return memory
}

func parseMemTotal(meminfo string, unknown uint64) uint64 {
	for line := range strings.Lines(meminfo) {
		fields := strings.Fields(line)
		if len(fields) == 3 && fields[0] == "MemTotal:" {
			if kib, err := strconv.ParseUint(fields[1], 10, 64); err == nil {
				return kib * 1024
			}
		}
	}
	return unknown
}
