package ingest

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/tallystick/tallystick/ingest/event"
	"github.com/tallystick/tallystick/internal/mapping"
	"github.com/tallystick/tallystick/internal/tenant"
)

// Mapping knows tenants' mapping rules. *mapping.Store is one. Its methods may be
// called by many goroutines and obey ctx.
type Mapping interface {
	// MappingVersion is a number that has changed when any tenant's rules have.
	MappingVersion(ctx context.Context) (int64, error)
	// MappingRules are a tenant's, at least as new as any version read before.
	MappingRules(ctx context.Context, id tenant.ID) (*mapping.Rules, error)
}

// mappings keeps tenants' rules: one version for all, asked for often, and each
// tenant's rules with the version they are of. While the source is away the rules
// that are known go on, because usage must not wait for whom it is for; an event of
// a tenant whose rules were never known is refused as unavailable.
type mappings struct {
	src Mapping // nil: no tenant has rules
	now func() time.Time

	version atomic.Int64 // 0 until it was read

	mu     sync.Mutex // one question at a time; protects failed
	failed time.Time
}

// ruleSetting are a tenant's rules as of a version.
type ruleSetting struct {
	version int64
	rules   *mapping.Rules
}

// of are the tenant's rules. When they are known it costs two loads.
func (m *mappings) of(t *tenantState) (*mapping.Rules, error) {
	s := t.rules.Load()
	if s != nil && s.version == m.version.Load() {
		return s.rules, nil
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if s = t.rules.Load(); s != nil && (s.version == m.version.Load() || m.pausing()) {
		return s.rules, nil
	}
	fresh, err := m.ask(t)
	if err != nil && s != nil {
		return s.rules, nil
	}
	return fresh, err
}

// pausing reports that the source has just failed. The caller holds mu.
func (m *mappings) pausing() bool { return m.now().Sub(m.failed) < confidentialPause }

// ask reads the tenant's rules. The caller holds mu.
func (m *mappings) ask(t *tenantState) (*mapping.Rules, error) {
	if m.pausing() {
		return nil, errUnknownRules
	}
	ctx, cancel := context.WithTimeout(context.Background(), confidentialWait)
	defer cancel()
	version := m.version.Load()
	if version == 0 {
		var err error
		if version, err = m.src.MappingVersion(ctx); err != nil {
			return nil, m.fail(err)
		}
		m.version.Store(version)
	}
	rules, err := m.src.MappingRules(ctx, t.id)
	if err != nil {
		return nil, m.fail(err)
	}
	t.rules.Store(&ruleSetting{version, rules})
	return rules, nil
}

func (m *mappings) fail(err error) error {
	m.failed = m.now()
	return fmt.Errorf("%w: %w", errUnknownRules, err)
}

// askMapping renews the version while requests go on with the one before.
func (e *Edge) askMapping(ctx context.Context) {
	if e.rules.src == nil {
		return
	}
	limited, cancel := context.WithTimeout(ctx, confidentialWait)
	defer cancel()
	version, err := e.rules.src.MappingVersion(limited)
	switch {
	case err == nil:
		e.rules.version.Store(version)
	case ctx.Err() == nil:
		e.quiet.Do(func() { e.logger.WarnContext(ctx, "ingest: cannot ask for mapping rules", "err", err) })
	}
}

// mapEvent runs the tenant's rules over the event. They come after the content MAC,
// so that an event that comes again is the same one under other rules.
func (f *frame) mapEvent(ev *event.Event, t *tenantState) error {
	changed, err := f.edge.rules.apply(ev, t, f.from.principal.Subject)
	if changed {
		f.producer, f.person = ev.AppendProducerMarked(f.producer[:0])
	}
	return err
}

// apply runs the tenant's rules over the event, and reports whether they changed whom
// it is for.
func (m *mappings) apply(ev *event.Event, t *tenantState, credential string) (changed bool, err error) {
	if m.src == nil || ev.Corrects != "" {
		return false, nil
	}
	rules, err := m.of(t)
	if err != nil || rules.Version == 0 {
		return false, err
	}
	ev.MappingVersion = rules.Version
	return rules.Apply(mapped{ev}, credential), nil
}

// Attribute runs the rules of the tenant that the event names over it as Submit would for this
// credential now: a front door that stops calls by whom they are for asks it before
// the call, and so judges by what the entry will say. Only dimensions change, and
// MappingVersion; submit the event as it was before. It answers from memory but for
// a tenant's first event. Errors: ErrUnavailable, when the rules were never known.
func (e *Edge) Attribute(ev *event.Event, credential string) error {
	if e.rules.src == nil {
		return nil
	}
	t, err := e.tenants.get(ev.Tenant)
	if err == nil {
		_, err = e.rules.apply(ev, t, credential)
	}
	if err != nil {
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	return nil
}

// mapped is an event as rules see it.
type mapped struct{ e *event.Event }

func (m mapped) field(name string) *string {
	switch name {
	case "team":
		return &m.e.Team
	case "service":
		return &m.e.Service
	case "feature":
		return &m.e.Feature
	case "agent":
		return &m.e.Agent
	case "end_customer":
		return &m.e.EndCustomer
	case "environment":
		return &m.e.Environment
	case "provider":
		return &m.e.Provider
	case "model":
		return &m.e.Model
	case "operation":
		return &m.e.Operation
	case "region":
		return &m.e.Region
	case "producer_id":
		return &m.e.ProducerID
	default:
		return nil
	}
}

// Get implements mapping.Event.
func (m mapped) Get(name string) string {
	if key, ok := strings.CutPrefix(name, "tag."); ok {
		for i := range m.e.Tags {
			if m.e.Tags[i].Key == key {
				return m.e.Tags[i].Value
			}
		}
		return ""
	}
	if p := m.field(name); p != nil {
		return *p
	}
	return ""
}

// Set implements mapping.Event.
func (m mapped) Set(name, value string) {
	if p := m.field(name); p != nil {
		*p = value
	}
}
