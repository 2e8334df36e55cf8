package mapping

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/tallystick/tallystick/internal/audit"
	"github.com/tallystick/tallystick/internal/authn"
	"github.com/tallystick/tallystick/internal/postgres"
	"github.com/tallystick/tallystick/internal/tenant"
)

// Default owners are whom reports show untagged usage as, when they are asked to:
// at most one for each dimension that a rule can set. Unlike rules they change no
// entry, so they are in the audit log and not in the ledger, and a version may be in
// force from a time that is past, or still to come.

// Dimensions are those that a rule can set and that can have a default owner.
func Dimensions() []string { return slices.Clone(Fields[:dimensions]) }

// OwnerError says which field of default owners breaks which rule. It matches
// ErrInvalid.
type OwnerError struct {
	Field string // such as "owners.team"
	Rule  string // "one_of", "person", "required", "length", "text" or "range"
	Text  string
}

// Error names the field and says what the rule asks for.
func (e *OwnerError) Error() string { return e.Field + ": " + e.Text }

// Unwrap makes it match ErrInvalid.
func (e *OwnerError) Unwrap() error { return ErrInvalid }

// CheckOwners says what is wrong with default owners by dimension. Error: *OwnerError.
func CheckOwners(owners map[string]string) error {
	for _, name := range slices.Sorted(maps.Keys(owners)) {
		if err := checkOwner(name, owners[name]); err != nil {
			return err
		}
	}
	return nil
}

func checkOwner(name, owner string) error {
	field := "owners." + name
	switch {
	case name == "user" || name == "user_pseudonym":
		return &OwnerError{field, "person", "a person is a pseudonym and cannot own what others may have used; " + ownable}
	case !contains(Fields[:dimensions], name):
		return &OwnerError{"owners", "one_of", fmt.Sprintf("%.64q can have no default owner; %s", name, ownable)}
	case strings.TrimSpace(owner) == "":
		return &OwnerError{field, "required", "an owner is not empty; leave the dimension out for none"}
	case len(owner) > maxValue:
		return &OwnerError{field, "length", fmt.Sprintf("an owner has at most %d bytes", maxValue)}
	case !plain(owner):
		return &OwnerError{field, "text", "an owner is valid UTF-8 without control characters"}
	}
	return nil
}

var ownable = strings.Join(Fields[:dimensions], ", ") + " can have one"

// latest is the end of time as the ledger knows it: nanoseconds in an int64.
var latest = time.Unix(0, math.MaxInt64)

// DefaultOwners are one version of a tenant's.
type DefaultOwners struct {
	Version int64             // 0: the tenant has none
	Owners  map[string]string // by dimension
	// From is since when the version counts, unless a later one does.
	From      time.Time
	CreatedAt time.Time
	CreatedBy string
}

// OwnerPeriod is a time in which a version of default owners counts: from Start
// until the start of the period after it.
type OwnerPeriod struct {
	Start   time.Time
	Version int64
	Owners  map[string]string
}

// Periods says which of the versions counts when, in order of time: at a time the
// one with the greatest number of those whose From is not after it. So a correction
// of what somebody owned in the past is a new version, and the one that it corrects
// can still be read.
func Periods(versions []DefaultOwners) []OwnerPeriod {
	byTime := slices.Clone(versions)
	slices.SortFunc(byTime, func(a, b DefaultOwners) int { return a.From.Compare(b.From) })
	var periods []OwnerPeriod
	for _, v := range byTime {
		n := len(periods)
		switch {
		case n > 0 && periods[n-1].Version > v.Version:
			continue
		case n > 0 && periods[n-1].Start.Equal(v.From):
			periods = periods[:n-1]
		}
		periods = append(periods, OwnerPeriod{Start: v.From, Version: v.Version, Owners: v.Owners})
	}
	return periods
}

// PutDefaultOwners makes the next version of a tenant's default owners, with its
// audit row in the same transaction. It counts from a time on; the zero time is the
// hour that is running. after is the version that the caller believes to be the
// newest, 0 for none. What the newest version says already makes no new one. Errors:
// *OwnerError, ErrVersion.
func (s *Store) PutDefaultOwners(ctx context.Context, by authn.Principal, id tenant.ID, after int64, owners map[string]string, from time.Time) (v DefaultOwners, err error) {
	if err := CheckOwners(owners); err != nil {
		return v, err
	}
	if !from.IsZero() && (from.Before(time.Unix(0, 0)) || from.After(latest)) {
		return v, &OwnerError{"effective_from", "range", "a time between 1970 and 2262"}
	}
	from = from.Truncate(time.Microsecond)      // as it is stored
	content, err := json.Marshal(noNil(owners)) // members of maps are sorted
	if err != nil {
		return v, err
	}
	err = s.db.InTenantsWrite(ctx, []string{string(id)}, func(tx postgres.Tx) error {
		newest, err := newestOwners(ctx, tx, id)
		if err != nil {
			return err
		}
		if newest.Version != after {
			return fmt.Errorf("%w: version %d", ErrVersion, newest.Version)
		}
		if newest.says(owners, from) {
			v = newest
			return nil
		}
		v, err = s.addOwners(ctx, tx, by, id, after+1, content, from)
		return err
	})
	if err != nil {
		return DefaultOwners{}, fmt.Errorf("put default owners: %w", err)
	}
	return v, nil
}

// says reports that a further version would change nothing at any time.
func (v *DefaultOwners) says(owners map[string]string, from time.Time) bool {
	return maps.Equal(v.Owners, owners) && (v.Version == 0 || from.IsZero() && v.From.Before(time.Now()) || !from.IsZero() && !v.From.After(from))
}

func (s *Store) addOwners(ctx context.Context, tx postgres.Tx, by authn.Principal, id tenant.ID, version int64, content []byte, from time.Time) (DefaultOwners, error) {
	var given *time.Time
	if !from.IsZero() {
		given = &from
	}
	v, err := scanOwners(tx.QueryRow(ctx, `insert into mapping.default_owners (tenant_id, version, content, effective_from, created_by)
		values ($1, $2, $3, coalesce($4, date_trunc('hour', clock_timestamp(), 'UTC')), $5)
		returning version, content, effective_from, created_at, created_by`, string(id), version, string(content), given, by.Subject))
	if postgres.SQLState(err) == "23505" {
		return v, fmt.Errorf("%w: version %d", ErrVersion, version)
	}
	if err != nil {
		return v, err
	}
	p := authn.PeerOf(ctx)
	hash := Hash(content)
	return v, audit.Append(ctx, tx, s.keys, audit.Event{
		Tenant: id, Actor: by.Subject, Action: "mapping.default_owners", Resource: "default_owners/" + strconv.FormatInt(version, 10), Outcome: audit.OK,
		Reason: fmt.Sprintf("%d owners from %s, sha256 %x", len(v.Owners), v.From.UTC().Format(time.RFC3339), hash[:8]),
		Addr:   p.Addr, Client: p.Client, RequestID: p.RequestID,
	})
}

// noNil is the map, so that none at all is {} and not null.
func noNil(m map[string]string) map[string]string {
	if m == nil {
		return map[string]string{}
	}
	return m
}

func scanOwners(row interface{ Scan(...any) error }) (v DefaultOwners, err error) {
	var content string
	if err := row.Scan(&v.Version, &content, &v.From, &v.CreatedAt, &v.CreatedBy); err != nil {
		return v, err
	}
	return v, json.Unmarshal([]byte(content), &v.Owners)
}

const selectOwners = `select version, content, effective_from, created_at, created_by from mapping.default_owners where tenant_id = $1`

func newestOwners(ctx context.Context, tx postgres.Tx, id tenant.ID) (DefaultOwners, error) {
	v, err := scanOwners(tx.QueryRow(ctx, selectOwners+` order by version desc limit 1`, string(id)))
	if postgres.IsNoRows(err) {
		return DefaultOwners{}, nil
	}
	return v, err
}

// DefaultOwners returns a version of a tenant's default owners, the newest for 0.
// A tenant without any has the version 0.
func (s *Store) DefaultOwners(ctx context.Context, id tenant.ID, version int64) (v DefaultOwners, err error) {
	err = s.db.InTenant(ctx, id, func(tx postgres.Tx) error {
		if version == 0 {
			v, err = newestOwners(ctx, tx, id)
			return err
		}
		v, err = scanOwners(tx.QueryRow(ctx, selectOwners+` and version = $2`, string(id), version))
		return err
	})
	if err != nil && !postgres.IsNoRows(err) {
		err = fmt.Errorf("read default owners: %w", err)
	}
	return v, err
}

// OwnerPeriods says who a tenant's default owners are, for all times.
func (s *Store) OwnerPeriods(ctx context.Context, id tenant.ID) ([]OwnerPeriod, error) {
	var versions []DefaultOwners
	err := s.db.InTenant(ctx, id, func(tx postgres.Tx) error {
		rows, err := tx.Query(ctx, selectOwners+` order by version`, string(id))
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			v, err := scanOwners(rows)
			if err != nil {
				return err
			}
			versions = append(versions, v)
		}
		return rows.Err()
	})
	if err != nil {
		return nil, fmt.Errorf("read default owners: %w", err)
	}
	return Periods(versions), nil
}
