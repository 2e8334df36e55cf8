package evidence_test

import (
	"bytes"
	"errors"
	"testing"

	"github.com/tallystick/tallystick/ledger/evidence"
	"github.com/tallystick/tallystick/ledger/verify"
)

// world is a tenant's two logs with checkpoints.
type world struct {
	t             testing.TB
	ledger, audit *memory
}

func newWorld(t testing.TB, n int, checkpoints ...int64) *world {
	t.Helper()
	w := &world{t, newLedger(t, "acme", n), newAudit(t, "acme", 300)}
	for _, size := range checkpoints {
		w.ledger.sign(t, size)
	}
	w.audit.sign(t, 250)
	return w
}

func (w *world) stores() evidence.Stores {
	return evidence.Stores{Ledger: w.ledger, LedgerTree: w.ledger, Audit: w.audit, AuditTree: w.audit}
}

// write makes a package.
func (w *world) write(req evidence.Request) ([]byte, *evidence.Manifest) {
	w.t.Helper()
	req.Tenant, req.MadeBy, req.Now = "acme", "a test", day(20)
	p, err := evidence.New(w.t.Context(), w.stores(), req)
	if err != nil {
		w.t.Fatal(err)
	}
	var b bytes.Buffer
	m, err := p.Write(w.t.Context(), &b, nil)
	if err != nil {
		w.t.Fatal(err)
	}
	return b.Bytes(), m
}

// trust are the public keys of both logs.
func (w *world) trust() verify.PackageOptions {
	keys, err := verify.ParseKeys([]byte(w.ledger.keys[0].VKey + "\n" + w.audit.keys[0].VKey))
	if err != nil {
		w.t.Fatal(err)
	}
	return verify.PackageOptions{Trusted: keys, MACKeys: macKey, AuditMACKeys: macKey, Workers: 2}
}

func (w *world) check(b []byte, o verify.PackageOptions) verify.Report {
	w.t.Helper()
	r, err := verify.Package(w.t.Context(), bytes.NewReader(b), int64(len(b)), o)
	if err != nil {
		w.t.Fatal(err)
	}
	return r
}

func TestPackagesAreIntact(t *testing.T) {
	w := newWorld(t, 10_000, 3, 100, 5000, 9000)
	for name, c := range map[string]struct {
		req      evidence.Request
		from, to int64
		cover    int64
	}{
		"all there is":               {evidence.Request{}, 1, 9000, 9000},
		"the beginning":              {evidence.Request{To: 2}, 1, 2, 3},
		"up to a checkpoint":         {evidence.Request{To: 100}, 1, 100, 100},
		"the middle":                 {evidence.Request{From: 37, To: 4999}, 37, 4999, 5000},
		"after a checkpoint":         {evidence.Request{From: 101, To: 5000}, 101, 5000, 5000},
		"one entry":                  {evidence.Request{From: 8192, To: 8192}, 8192, 8192, 9000},
		"proofs to what is kept":     {evidence.Request{From: 5003, To: 8000, Kept: []int64{77, 3, 100, 6000, 8500}}, 5003, 8000, 9000},
		"a day":                      {evidence.Request{Dates: &evidence.Dates{From: day(3), Before: day(4), TimeZone: "UTC"}}, 48, 119, 5000},
		"a month with late entries":  {evidence.Request{Dates: &evidence.Dates{From: day(3), Before: day(31), TimeZone: "UTC"}}, 48, 763, 5000},
		"days beyond the checkpoint": {evidence.Request{Dates: &evidence.Dates{From: day(375), Before: day(400), TimeZone: "UTC"}}, 8976, 9000, 9000},
	} {
		t.Run(name, func(t *testing.T) {
			b, m := w.write(c.req)
			r := w.check(b, w.trust())
			if r.Verdict != verify.Intact || r.From != c.from || r.To != c.to || r.Entries != c.to-c.from+1 || r.Covered != c.cover || !r.MACsChecked {
				t.Errorf("%+v", r)
			}
			if r.Sums.CostUSD() != m.Totals.Money[0].Cost {
				t.Errorf("%+v", r.Sums)
			}
			if hasAudit := c.from < 250; (r.Audit != nil) != hasAudit || hasAudit && r.Audit.Verdict != verify.Intact {
				t.Errorf("audit: %+v", r.Audit)
			}
		})
	}
}

func TestRangesThatCannotBe(t *testing.T) {
	w := newWorld(t, 200, 100)
	for name, c := range map[string]struct {
		req  evidence.Request
		want error
	}{
		"beyond the end":        {evidence.Request{From: 300}, evidence.ErrRange},
		"to beyond the end":     {evidence.Request{To: 201}, evidence.ErrRange},
		"backwards":             {evidence.Request{From: 9, To: 8}, evidence.ErrRange},
		"negative":              {evidence.Request{From: -1}, evidence.ErrRange},
		"under no checkpoint":   {evidence.Request{To: 101}, evidence.ErrUncovered},
		"a day without entries": {evidence.Request{Dates: &evidence.Dates{From: day(25), Before: day(26)}}, evidence.ErrRange},
		"a day not covered":     {evidence.Request{Dates: &evidence.Dates{From: day(5), Before: day(6)}}, evidence.ErrUncovered},
		"kept beyond":           {evidence.Request{Kept: []int64{101}}, evidence.ErrKept},
		"kept of nothing":       {evidence.Request{Kept: []int64{0}}, evidence.ErrKept},
	} {
		c.req.Tenant, c.req.Now = "acme", day(20)
		if _, err := evidence.New(t.Context(), w.stores(), c.req); !errors.Is(err, c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	w.ledger.notes = nil
	if _, err := evidence.New(t.Context(), w.stores(), evidence.Request{Tenant: "acme"}); !errors.Is(err, evidence.ErrUncovered) {
		t.Errorf("without any checkpoint: %v", err)
	}
}

func TestExports(t *testing.T) {
	m := newLedger(t, "acme", 9000) // more than two blocks
	for _, c := range []struct{ from, to, want int64 }{{0, 0, 9000}, {1, 5000, 5000}, {7, 7, 1}, {4097, 8192, 4096}} {
		var b bytes.Buffer
		var last int64
		h, err := evidence.Export(t.Context(), m, "acme", c.from, c.to, &b, func(done, _ int64) { last = done })
		if err != nil {
			t.Fatal(err)
		}
		r, err := verify.File(t.Context(), &b, verify.Options{Keys: macKey, Workers: 2})
		if err != nil || r.Verdict != verify.Intact || r.Entries != c.want || last != c.want || h.To != r.To {
			t.Errorf("%+v: %+v, %v, progress %d", c, r, err, last)
		}
	}
	var b bytes.Buffer
	if _, err := evidence.Export(t.Context(), m, "acme", 9001, 0, &b, nil); !errors.Is(err, evidence.ErrRange) {
		t.Errorf("an export of nothing: %v", err)
	}
	m.rows = m.rows[:8000]
	if _, err := evidence.Export(t.Context(), m, "acme", 0, 0, &b, nil); !errors.Is(err, evidence.ErrGap) {
		t.Errorf("an export of a ledger that ends early: %v", err)
	}
	m.rows = append(m.rows[:10:10], m.rows[11:]...)
	if _, err := evidence.Export(t.Context(), m, "acme", 0, 100, &b, nil); !errors.Is(err, evidence.ErrGap) {
		t.Errorf("an export of a ledger with a gap: %v", err)
	}
}
