package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"

	"github.com/tallystick/tallystick/internal/postgres"
	"github.com/tallystick/tallystick/internal/tenant"
	"github.com/tallystick/tallystick/ledger/evidence"
	"github.com/tallystick/tallystick/ledger/pgread"
	"github.com/tallystick/tallystick/ledger/verify"
)

// benchVerify measures verification of one tenant's ledger, MACs and tree included, from
// Postgres against a bare COPY of the same rows to nowhere, and from an export.
func (r *benchRun) benchVerify(ctx context.Context, b *benchDB, id string) error {
	db, err := postgres.Open(ctx, b.dsns[postgres.RoleApp], b.signer, postgres.Options{MaxConns: 4})
	if err != nil {
		return err
	}
	defer db.Close()
	src := pgread.New(db, tenant.ID(id))
	ends, err := src.Ends(ctx)
	if err != nil {
		return err
	}
	n := int(ends.Seq)
	r.printf("verify (one tenant, %d entries, MACs and tree)", n)
	path := filepath.Join(r.dir, "export")
	if err := exportTo(ctx, src, id, path); err != nil {
		return err
	}
	rounds := 6
	if r.short {
		rounds = 2
	}
	paths := []struct {
		name string
		run  func() error
		s    []sample
	}{
		{name: "COPY to nowhere", run: func() error { return b.drain(ctx, id) }},
		{name: "from Postgres, one worker", run: func() error { return verifyRows(ctx, src, id, 1) }},
		{name: "from Postgres, two workers", run: func() error { return verifyRows(ctx, src, id, 2) }},
		{name: "from an export, two workers", run: func() error { return verifyExport(ctx, id, path) }},
	}
	for i := range rounds + 1 {
		for j := range paths {
			s, err := measure(b.pg.PID(), n, paths[j].run)
			if err != nil {
				return fmt.Errorf("%s: %w", paths[j].name, err)
			}
			if i > 0 {
				paths[j].s = append(paths[j].s, s)
			}
		}
	}
	for _, p := range paths {
		r.report(p.name, p.s)
	}
	r.set("verify", "%.0f/s", medianRate(paths[3].s))
	r.set("verify_vs_drain", "%.2f", medianRatio(paths[2].s, paths[0].s))
	return nil
}

func verifyOptions(id string, workers int) verify.Options {
	return verify.Options{Tenant: id, Workers: workers, Tree: true, Keys: func(epoch uint32) ([32]byte, error) {
		return benchKeys{}.MACKey(tenant.ID(id), epoch)
	}}
}

func intact(rep verify.Report, err error) error {
	if err == nil && rep.Verdict != verify.Intact {
		err = errors.New(rep.Message)
	}
	return err
}

func verifyRows(ctx context.Context, src verify.Source, id string, workers int) error {
	return intact(verify.Verify(ctx, src, verifyOptions(id, workers)))
}

func verifyExport(ctx context.Context, id, path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	return intact(verify.File(ctx, f, verifyOptions(id, runtime.GOMAXPROCS(0))))
}

func exportTo(ctx context.Context, src verify.Source, id, path string) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	w := bufio.NewWriterSize(f, 1<<20)
	_, err = evidence.Export(ctx, src, id, 0, 0, w, nil)
	return errors.Join(err, w.Flush(), f.Close())
}

// drain reads what a verification reads, as fast as the server gives it.
func (b *benchDB) drain(ctx context.Context, id string) error {
	if !tenant.ValidID(id) {
		return tenant.ErrInvalidID
	}
	// COPY takes no parameters; the id is a slug of letters, digits and hyphens.
	_, err := b.plain.PgConn().CopyTo(ctx, io.Discard, fmt.Sprintf(`
		copy (select seq, kind, key_epoch, occurred_at, cost_usd, canonical, chain, mac from ledger.entry
		      where tenant_id = '%s' order by seq) to stdout binary`, id))
	return err
}
