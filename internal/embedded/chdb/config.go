package chdb

import (
	"encoding/xml"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// The engine is sized for a small machine that also runs Postgres and the
// pipeline. Each figure is a ceiling; none is allocated up front.
const (
	markCacheBytes       = 32 << 20
	primaryIndexBytes    = 32 << 20
	compiledCacheBytes   = 8 << 20
	backgroundThreads    = 2
	queryMemoryPercent   = 75 // of Config.MaxMemoryBytes, for one query
	spillMemoryPercent   = 20 // of Config.MaxMemoryBytes, then aggregation and sort go to disk
	maxMergeBytes        = 8 << 30
	minBytesForWide      = 256 << 20
	mergeBase            = 8
	maxReaderThreads     = 2
	defaultExecutionSecs = 300
)

// engineGrants is what the engine's only user may do. No source (FILE, URL,
// REMOTE, S3, …), no function definition and no access management is in it, so
// a statement cannot leave the engine even where read-only mode would let it.
const engineGrants = "GRANT SELECT, INSERT, ALTER, CREATE DATABASE, CREATE TABLE, CREATE VIEW, CREATE DICTIONARY, " +
	"CREATE TEMPORARY TABLE, DROP, TRUNCATE, OPTIMIZE, SHOW, KILL QUERY, BACKUP, dictGet, " +
	"SYSTEM FLUSH, SYSTEM MERGES, SYSTEM TTL MERGES, SYSTEM DROP CACHE, SYSTEM RELOAD ON *.*"

// serverConfig is ClickHouse's config.xml as far as it is used here. It is
// always passed: without --config-file the engine reads ./config.xml of whatever
// directory it was started in.
type serverConfig struct {
	XMLName             xml.Name        `xml:"clickhouse"`
	UsersConfig         string          `xml:"users_config"`
	MaxServerMemory     int64           `xml:"max_server_memory_usage"`
	MarkCache           int64           `xml:"mark_cache_size"`
	UncompressedCache   int64           `xml:"uncompressed_cache_size"`
	IndexMarkCache      int64           `xml:"index_mark_cache_size"`
	PrimaryIndexCache   int64           `xml:"primary_index_cache_size"`
	QueryConditionCache int64           `xml:"query_condition_cache_size"`
	CompiledCache       int64           `xml:"compiled_expression_cache_size"`
	MMapCache           int64           `xml:"mmap_cache_size"`
	BackgroundPool      int             `xml:"background_pool_size"`
	MergesRatio         int             `xml:"background_merges_mutations_concurrency_ratio"`
	CommonPool          int             `xml:"background_common_pool_size"`
	SchedulePool        int             `xml:"background_schedule_pool_size"`
	MovePool            int             `xml:"background_move_pool_size"`
	FetchPool           int             `xml:"background_fetches_pool_size"`
	BufferFlushPool     int             `xml:"background_buffer_flush_schedule_pool_size"`
	MessageBrokerPool   int             `xml:"background_message_broker_schedule_pool_size"`
	DistributedPool     int             `xml:"background_distributed_schedule_pool_size"`
	MaxThreadPool       int             `xml:"max_thread_pool_size"`
	MaxThreadPoolFree   int             `xml:"max_thread_pool_free_size"`
	MaxIOThreads        int             `xml:"max_io_thread_pool_size"`
	PartsLoading        int             `xml:"max_active_parts_loading_thread_pool_size"`
	OutdatedParts       int             `xml:"max_outdated_parts_loading_thread_pool_size"`
	PartsCleaning       int             `xml:"max_parts_cleaning_thread_pool_size"`
	MergeTree           mergeTreeConfig `xml:"merge_tree"`
}

// mergeTreeConfig are defaults for tables; a table's own SETTINGS win. The
// deduplication window is left at 0: with one, equal blocks without a token are
// dropped too, so it belongs only to tables that are written with tokens.
//
// Parts are synced because the pipeline's checkpoint in Postgres is: without,
// a power cut would leave the checkpoint ahead of the rows.
//
// Parts below MinBytesForWide keep all columns in one file, which is synced once
// and not per column. MergeBase is about how many parts of a size become one:
// rows are rewritten less often than with the engine's own 5.
type mergeTreeConfig struct {
	MaxMergeBytes       int64 `xml:"max_bytes_to_merge_at_max_space_in_pool"`
	FreeEntriesMutation int   `xml:"number_of_free_entries_in_pool_to_execute_mutation"`
	FreeEntriesLower    int   `xml:"number_of_free_entries_in_pool_to_lower_max_size_of_merge"`
	FreeEntriesOptimize int   `xml:"number_of_free_entries_in_pool_to_execute_optimize_entire_partition"`
	FsyncAfterInsert    int   `xml:"fsync_after_insert"`
	FsyncPartDirectory  int   `xml:"fsync_part_directory"`
	MinBytesForWide     int64 `xml:"min_bytes_for_wide_part"`
	MergeBase           int   `xml:"merge_selector_base"`
	// AutoStatistics are the statistics of columns that merges make: none. They
	// help to choose among indexes and joins, of which reports have none; for the
	// 60 columns of `entry` they were a third of a merge's time.
	AutoStatistics string `xml:"auto_statistics_types"`
}

// writeConfig writes both configuration files into RunDir and returns the path
// of the first.
func (c Config) writeConfig() (string, error) {
	users := filepath.Join(c.RunDir, "users.xml")
	server := serverConfig{
		UsersConfig:         users,
		MaxServerMemory:     c.MaxMemoryBytes,
		MarkCache:           markCacheBytes,
		PrimaryIndexCache:   primaryIndexBytes,
		IndexMarkCache:      markCacheBytes / 4,
		QueryConditionCache: markCacheBytes / 4,
		CompiledCache:       compiledCacheBytes,
		BackgroundPool:      backgroundThreads,
		MergesRatio:         1,
		CommonPool:          backgroundThreads,
		SchedulePool:        backgroundThreads,
		MovePool:            1,
		FetchPool:           1,
		BufferFlushPool:     1,
		MessageBrokerPool:   1,
		DistributedPool:     1,
		MaxThreadPool:       512,
		MaxThreadPoolFree:   8,
		MaxIOThreads:        8,
		PartsLoading:        backgroundThreads,
		OutdatedParts:       backgroundThreads,
		PartsCleaning:       backgroundThreads,
		MergeTree: mergeTreeConfig{
			MaxMergeBytes:       maxMergeBytes,
			FreeEntriesMutation: 1,
			FreeEntriesLower:    1,
			FreeEntriesOptimize: 1,
			FsyncAfterInsert:    1,
			FsyncPartDirectory:  1,
			MinBytesForWide:     minBytesForWide,
			MergeBase:           mergeBase,
		},
	}
	path := filepath.Join(c.RunDir, "config.xml")
	text, err := xml.MarshalIndent(server, "", "  ")
	if err != nil {
		return "", fmt.Errorf("chdb: write configuration: %w", err)
	}
	if err := os.WriteFile(path, text, 0o600); err != nil {
		return "", fmt.Errorf("chdb: write configuration: %w", err)
	}
	if err := os.WriteFile(users, []byte(c.usersConfig()), 0o600); err != nil {
		return "", fmt.Errorf("chdb: write configuration: %w", err)
	}
	return path, nil
}

// profile are the settings every connection starts with. async_insert would
// acknowledge rows that a crash loses and bypasses deduplication tokens.
func (c Config) profile() [][2]string {
	percent := func(p int64) string { return fmt.Sprint(c.MaxMemoryBytes / 100 * p) }
	return [][2]string{
		{"async_insert", "0"},
		{"wait_for_async_insert", "1"},
		{"insert_deduplicate", "1"},
		{"deduplicate_blocks_in_dependent_materialized_views", "1"},
		{"max_threads", fmt.Sprint(maxReaderThreads)},
		{"max_insert_threads", "1"},
		{"max_memory_usage", percent(queryMemoryPercent)},
		{"max_bytes_before_external_group_by", percent(spillMemoryPercent)},
		{"max_bytes_before_external_sort", percent(spillMemoryPercent)},
		{"max_execution_time", fmt.Sprint(defaultExecutionSecs)},
		{"query_profiler_real_time_period_ns", "0"},
		{"query_profiler_cpu_time_period_ns", "0"},
		{"log_queries", "0"},
		{"allow_introspection_functions", "0"},
		{"output_format_native_use_flattened_dynamic_and_json_serialization", "1"},
	}
}

func (c Config) usersConfig() string {
	var b strings.Builder
	b.WriteString("<clickhouse>\n <profiles><default>\n")
	for _, s := range c.profile() {
		fmt.Fprintf(&b, "  <%s>%s</%s>\n", s[0], s[1], s[0])
	}
	b.WriteString(" </default></profiles>\n <users><default>\n  <password></password>\n" +
		"  <networks><ip>::/0</ip></networks>\n  <profile>default</profile>\n  <quota>default</quota>\n" +
		"  <grants><query>" + engineGrants + "</query></grants>\n" +
		" </default></users>\n <quotas><default></default></quotas>\n</clickhouse>\n")
	return b.String()
}
