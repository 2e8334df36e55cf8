// Package tenant names tenants and says which partition of a topic is theirs.
//
// A tenant id is a short slug that is safe in keys, URLs, file names and SQL
// parameters. Ids of the form "system/<n>" are reserved: they are the chains
// that hold what belongs to nobody, such as undecodable records (rule 9 of
// hop 3 in docs/architecture.md); no request can name them.
package tenant

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// MaxIDBytes is the longest tenant id.
const MaxIDBytes = 63

// ErrInvalidID says that a string cannot be a tenant id.
var ErrInvalidID = errors.New("tenant id must match [a-z0-9][a-z0-9-]{0,62}")

const systemPrefix = "system/"

// ID is a valid tenant id, or the id of a system chain.
type ID string

// ParseID checks s against the slug rule. System ids are refused.
func ParseID(s string) (ID, error) {
	if !ValidID(s) {
		return "", fmt.Errorf("%w: %q", ErrInvalidID, truncate(s))
	}
	return ID(s), nil
}

// ValidID reports whether s is the id of an ordinary tenant. It does not allocate.
func ValidID(s string) bool {
	if len(s) == 0 || len(s) > MaxIDBytes || s[0] == '-' {
		return false
	}
	for i := 0; i < len(s); i++ {
		c := s[i]
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' {
			return false
		}
	}
	return true
}

// System is the reserved chain of one partition of the events topic.
func System(partition int32) ID {
	return ID(systemPrefix + strconv.Itoa(int(partition)))
}

// IsSystem reports whether the id is a reserved chain.
func (id ID) IsSystem() bool { return strings.HasPrefix(string(id), systemPrefix) }

// SystemPartition is the partition whose reserved chain this is.
func (id ID) SystemPartition() (int32, bool) {
	n, err := strconv.ParseInt(strings.TrimPrefix(string(id), systemPrefix), 10, 32)
	if !id.IsSystem() || err != nil || n < 0 || System(int32(n)) != id {
		return 0, false
	}
	return int32(n), true
}

// Partition is the partition of a topic with n partitions that holds the
// tenant's records: Kafka's default partitioner, (murmur2(key) & 0x7fffffff) % n,
// so that every producer in every language agrees without configuration. A
// system chain lives in its own partition.
func (id ID) Partition(n int32) int32 {
	if p, ok := id.SystemPartition(); ok {
		return p % n
	}
	return int32(murmur2(string(id))&0x7fffffff) % n
}

// murmur2 is the variant of org.apache.kafka.common.utils.Utils.murmur2.
func murmur2(b string) uint32 {
	const (
		seed uint32 = 0x9747b28c
		m    uint32 = 0x5bd1e995
	)
	h := seed ^ uint32(len(b))
	for len(b) >= 4 {
		k := uint32(b[0]) | uint32(b[1])<<8 | uint32(b[2])<<16 | uint32(b[3])<<24
		b = b[4:]
		k *= m
		k ^= k >> 24
		k *= m
		h *= m
		h ^= k
	}
	switch len(b) {
	case 3:
		h ^= uint32(b[2]) << 16
		fallthrough
	case 2:
		h ^= uint32(b[1]) << 8
		fallthrough
	case 1:
		h ^= uint32(b[0])
		h *= m
	}
	h ^= h >> 13
	h *= m
	h ^= h >> 15
	return h
}

// truncate keeps an attacker's megabyte out of error messages.
func truncate(s string) string {
	if len(s) > MaxIDBytes+1 {
		return s[:MaxIDBytes+1] + "…"
	}
	return s
}
