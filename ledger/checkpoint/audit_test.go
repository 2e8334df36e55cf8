package checkpoint_test

import (
	"crypto/sha256"
	"fmt"
	"testing"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/tallystick/tallystick/internal/audit"
	"github.com/tallystick/tallystick/internal/keyring"
	"github.com/tallystick/tallystick/internal/tenant"
	"github.com/tallystick/tallystick/ledger/checkpoint"
	"github.com/tallystick/tallystick/ledger/checkpoint/pglog"
	"github.com/tallystick/tallystick/ledger/verify"
)

// auditKeys authenticate audit rows.
type auditKeys struct{}

func (auditKeys) Epoch(tenant.ID, keyring.Purpose) uint32 { return 1 }

func (auditKeys) Derive(id tenant.ID, p keyring.Purpose, epoch uint32) ([keyring.KeyBytes]byte, error) {
	return sha256.Sum256(fmt.Appendf(nil, "%s/%v/%d", id, p, epoch)), nil
}

// TestAuditTree: the audit log has a tree of its own, made and held to its chain
// as the ledger's is.
func TestAuditTree(t *testing.T) {
	w := newWorld(t)
	log := audit.NewLog(w.one, auditKeys{})
	record := func(id tenant.ID, n int) {
		t.Helper()
		for i := range n {
			if err := log.Record(t.Context(), audit.Event{Tenant: id, Actor: "a", Action: "token.create", Resource: fmt.Sprint(i), Outcome: audit.OK}); err != nil {
				t.Fatal(err)
			}
		}
	}
	record("acme", 20)
	record(audit.Installation, 3)
	w.options.Tenants = func() []tenant.ID { return []tenant.ID{"acme", audit.Installation} }
	c := checkpoint.New(pglog.NewAudit(w.many, w.one), w.store(), w.dir, w.keys, w.options, discard())
	w.round(c)
	w.clean(c)
	rows, err := log.Rows(t.Context(), "acme", 1, 100, false)
	if err != nil {
		t.Fatal(err)
	}
	var leaves []tlog.Hash
	for i := range rows {
		leaves = append(leaves, tlog.RecordHash(rows[i].Canonical))
	}
	size, signed, ok, err := w.dir.Newest(checkpoint.AuditLog, "acme")
	h, parseErr := checkpoint.OpenUnverified(signed)
	if err != nil || !ok || parseErr != nil || size != 20 || h.Origin != "test.example/audit/acme" || h.Root != merkle(t, leaves) {
		t.Fatalf("size %d, %+v, %v, %v", size, h, err, parseErr)
	}
	if size, _, _, _ := w.dir.Newest(checkpoint.AuditLog, audit.Installation); size != 3 {
		t.Errorf("the installation's log is signed at %d", size)
	}
	proof, err := checkpoint.Inclusion(t.Context(), checkpoint.NewReader(w.store(), checkpoint.AuditLog, "acme"), 7, 20, 20)
	if err != nil {
		t.Fatal(err)
	}
	if err := checkpoint.VerifyInclusion(checkpoint.Hash(leaves[7]), 7, &h, proof); err != nil {
		t.Error(err)
	}

	record("acme", 5)
	for _, sql := range []string{
		`alter table audit.event disable trigger user`,
		`update audit.event set canonical = set_byte(canonical, 9, get_byte(canonical, 9) # 1) where tenant_id = 'acme' and seq = 23`,
	} {
		if _, err := w.admin().Exec(sql); err != nil {
			t.Fatal(err)
		}
	}
	w.round(c)
	if f := c.Status().Faults; len(f) != 1 || f[0].Seq != 23 || f[0].Reason != string(verify.Hash) || f[0].Log != checkpoint.AuditLog {
		t.Errorf("faults %+v", f)
	}
}
