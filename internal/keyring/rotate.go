package keyring

import (
	"fmt"
	"maps"
	"slices"

	"golang.org/x/sync/errgroup"

	"github.com/tallystick/tallystick/internal/tenant"
)

// Rotate begins a new epoch of a series for each of ids, and returns these
// epochs. They are durable when it returns. A MAC epoch is next until Activate;
// asked again before that, Rotate makes no other. All others are active at once.
// Errors: ErrNoKey, ErrDestroyed, ErrReadOnly, ErrPurpose (the MAC series of a
// system chain never moves), and what the file system says; then nothing moved.
func (r *Ring) Rotate(s Series, ids ...tenant.ID) (made []KeyEpoch, err error) {
	err = r.change(func() ([]item, error) {
		var items []item
		for _, id := range slices.Compact(slices.Sorted(slices.Values(ids))) {
			t := r.held.tenants[id]
			if t == nil || !t.complete() {
				return nil, fmt.Errorf("%w: %q", ErrNoKey, id)
			}
			if t.gone != 0 {
				return nil, fmt.Errorf("%w: %q", ErrDestroyed, id)
			}
			if !s.valid() || s == SeriesMAC && id.IsSystem() {
				return nil, fmt.Errorf("%w: the %s series of %q does not move", ErrPurpose, s, id)
			}
			made = append(made, t.following(id, s, r.now().Unix()))
			if made[len(made)-1].pending(t) {
				continue
			}
			items = append(items, made[len(made)-1].item())
		}
		return items, nil
	})
	if err != nil {
		return nil, fmt.Errorf("keyring: rotate: %w", err)
	}
	return made, nil
}

// following is the epoch that a rotation leads to.
func (t *tenantKeys) following(id tenant.ID, s Series, now int64) KeyEpoch {
	line := t.lines[s]
	e := line[len(line)-1]
	e.Tenant, e.Series = id, s
	if e.State == Next {
		return e
	}
	e.Number, e.State, e.Since = e.Number+1, Active, seconds(now)
	if s == SeriesMAC {
		e.State = Next
	}
	return e
}

// pending reports that the tenant has this epoch already.
func (e KeyEpoch) pending(t *tenantKeys) bool { return int(e.Number) <= len(t.lines[e.Series]) }

func (e KeyEpoch) item() item {
	return item{form: itemEpoch, code: byte(e.Series), number: e.Number, at: unixSeconds(e.Since), tenant: e.Tenant, state: e.State}
}

// RotateDue is Rotate for every series that is older than the schedule allows.
// An epoch of unknown age, which a ring of the first version has, counts from
// the first time it is looked at.
func (r *Ring) RotateDue(schedule Schedule) (made []KeyEpoch, err error) {
	if items, _ := r.due(schedule); len(items) == 0 {
		return nil, nil // nothing to do: no lock taken
	}
	err = r.change(func() (items []item, err error) {
		items, made = r.due(schedule)
		return items, nil
	})
	if err != nil {
		return nil, fmt.Errorf("keyring: rotate: %w", err)
	}
	return made, nil
}

// due lists what a rotation must write now, and the epochs that it begins.
func (r *Ring) due(schedule Schedule) (items []item, made []KeyEpoch) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	now := r.now()
	for _, id := range r.held.ids(func(t *tenantKeys) bool { return t.complete() && t.gone == 0 }) {
		t := r.held.tenants[id]
		for _, s := range AllSeries() {
			line := t.lines[s]
			newest := line[len(line)-1]
			newest.Tenant, newest.Series = id, s
			limit := schedule.of(s)
			switch {
			case limit <= 0 || newest.State == Next || s == SeriesMAC && id.IsSystem():
			case newest.Since.IsZero():
				newest.Since = seconds(now.Unix())
				items = append(items, newest.item())
			case now.Sub(newest.Since) >= limit:
				e := t.following(id, s, now.Unix())
				items, made = append(items, e.item()), append(made, e)
			}
		}
	}
	return items, made
}

// Activate puts epochs to use that are next: the ledger has met their control
// records. Epochs that are active or past already stay as they are.
func (r *Ring) Activate(epochs ...KeyEpoch) error {
	err := r.change(func() ([]item, error) {
		var items []item
		for _, e := range epochs {
			t := r.held.tenants[e.Tenant]
			if t == nil || !e.Series.valid() || len(t.lines[e.Series]) < int(e.Number) {
				return nil, fmt.Errorf("%w: %s epoch %d of %q was never made", ErrEpoch, e.Series, e.Number, e.Tenant)
			}
			line := t.lines[e.Series]
			if newest := line[len(line)-1]; newest.Number != e.Number || newest.State != Next {
				continue
			}
			e.State, e.Since = Active, seconds(r.now().Unix())
			items = append(items, e.item())
		}
		return items, nil
	})
	if err != nil {
		return fmt.Errorf("keyring: activate: %w", err)
	}
	return nil
}

// Destroy destroys the tenant's sealing root: whatever was sealed under it can
// never be opened again, here or in any process that shares the directory. When
// it returns nil the wrapped root is out of the file and its old blocks are
// overwritten. After an error the root may be destroyed or not; said again, it
// does no harm. Errors: ErrNoKey, ErrReadOnly, ErrPurpose for a system chain.
func (r *Ring) Destroy(id tenant.ID) error {
	err := r.change(func() ([]item, error) {
		t := r.held.tenants[id]
		if t == nil || !t.complete() {
			return nil, fmt.Errorf("%w: %q", ErrNoKey, id)
		}
		if id.IsSystem() {
			return nil, fmt.Errorf("%w: %q is nobody's", ErrPurpose, id)
		}
		if t.gone != 0 {
			return nil, nil
		}
		return []item{{form: itemDestroyed, code: byte(kindSealing), number: 1, at: r.now().Unix(), tenant: id}}, nil
	})
	if err != nil {
		return fmt.Errorf("keyring: destroy: %w", err)
	}
	return nil
}

// change stores what fn finds to write, with the file locked and read to its
// end. Nobody changes held meanwhile, so fn may read it.
func (r *Ring) change(fn func() ([]item, error)) error {
	if r.file.readOnly {
		return ErrReadOnly
	}
	r.writing.Lock()
	defer r.writing.Unlock()
	err := r.file.locked(func() error {
		if err := r.catchUp(); err != nil {
			return err
		}
		items, err := fn()
		if err != nil {
			return err
		}
		return r.store(items)
	})
	if err != nil {
		return err
	}
	return r.clean()
}

// clean takes destroyed roots out of the file: ours, or those that another
// process was killed over. The caller has its turn to write.
func (r *Ring) clean() error {
	if !r.held.unclean || r.file.readOnly {
		return nil
	}
	err := r.file.locked(func() error {
		if err := r.catchUp(); err != nil || !r.held.unclean {
			return err
		}
		return r.file.replace(appendRecords([]byte(logMagic), r.held.items()))
	})
	if err != nil {
		return err
	}
	return r.file.locked(r.catchUp)
}

// Rewrap wraps every root key anew under the configured key service, and under
// a new master key where that is a local one, without touching anything that
// was sealed or signed. It returns how many. Master keys of the directory that
// nothing is wrapped under afterwards are overwritten and removed. Other
// processes go on meanwhile, and follow. After an error all keys are as they
// were. Errors: ErrUnavailable, ErrMasterKey when a key does not open,
// ErrReadOnly.
func (r *Ring) Rewrap() (n int, err error) {
	if r.file.readOnly {
		return 0, ErrReadOnly
	}
	if err := r.refresh(); err != nil {
		return 0, fmt.Errorf("keyring: rewrap: %w", err)
	}
	// A service may be slow: that part goes before the lock, which is everybody's.
	done, err := r.rewrapAhead()
	if err != nil {
		return 0, fmt.Errorf("keyring: rewrap: %w", err)
	}
	r.writing.Lock()
	defer r.writing.Unlock()
	err = r.file.locked(func() error {
		if err := r.catchUp(); err != nil {
			return err
		}
		n, err = r.rewrap(done)
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("keyring: rewrap: %w", err)
	}
	err = r.file.locked(func() error {
		if err := r.catchUp(); err != nil {
			return err
		}
		return r.local.tidy(r.held.wrappers(), true)
	})
	if err != nil {
		return n, fmt.Errorf("keyring: rewrap: %w", err)
	}
	return n, nil
}

// rewrapAhead wraps what there is now, unless a new master key has to be made,
// which needs the lock.
func (r *Ring) rewrapAhead() (map[label]item, error) {
	if r.kms == nil {
		return map[label]item{}, nil
	}
	return r.wrapRoots(r.kms, r.roots())
}

func (r *Ring) wrapRoots(kms KMS, roots []*root) (map[label]item, error) {
	plain, err := r.unwrapped(roots)
	if err != nil {
		return nil, err
	}
	items, err := r.wrapAll(kms, plain)
	if err != nil {
		return nil, err
	}
	byLabel := make(map[label]item, len(items))
	for i := range items {
		byLabel[plain[i].label] = items[i]
	}
	return byLabel, nil
}

// rewrap replaces the file: done are keys that are wrapped anew already. The
// caller holds the file lock and has caught up.
func (r *Ring) rewrap(done map[label]item) (n int, err error) {
	kms, err := r.target()
	if err != nil {
		return 0, err
	}
	rest := slices.DeleteFunc(r.roots(), func(k *root) bool { _, ok := done[k.label]; return ok })
	late, err := r.wrapRoots(kms, rest)
	if err != nil {
		return 0, err
	}
	maps.Copy(done, late)
	items := r.held.items()
	for i := range items {
		if it := &items[i]; it.form == itemKey {
			*it, n = done[label{kind(it.code), it.tenant, it.number}], n+1
		}
	}
	return n, r.file.replace(appendRecords([]byte(logMagic), items))
}

// target is what a rewrap wraps under: a local master key is a new one.
func (r *Ring) target() (KMS, error) {
	if r.kms != nil {
		return r.kms, nil
	}
	return r.local.make(r.local.name() + nextSuffix)
}

// unwrapped is the root keys themselves.
func (r *Ring) unwrapped(roots []*root) ([]plainKey, error) {
	plain := make([]plainKey, len(roots))
	var g errgroup.Group
	g.SetLimit(parallelCalls)
	for i, k := range roots {
		g.Go(func() error {
			secret, err := r.secret(k)
			plain[i] = plainKey{label: k.label, created: k.created, secret: secret}
			return err
		})
	}
	return plain, g.Wait()
}

// roots lists every root key there is.
func (r *Ring) roots() (all []*root) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return r.held.roots()
}
