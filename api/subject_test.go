package api_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/tallystick/tallystick/api"
	"github.com/tallystick/tallystick/ingest/event"
	"github.com/tallystick/tallystick/internal/audit"
	"github.com/tallystick/tallystick/internal/authn"
	"github.com/tallystick/tallystick/internal/keyring"
	"github.com/tallystick/tallystick/internal/postgres"
	"github.com/tallystick/tallystick/internal/tenant"
	"github.com/tallystick/tallystick/internal/testenv"
	"github.com/tallystick/tallystick/ledger/chain"

	pb "github.com/tallystick/tallystick/api/gen/tallystick/v1"
)

// subjectWorld is a database with a person and a sealed entry of the tenant
// acme, and a server over it.
type subjectWorld struct {
	t     *testing.T
	ring  *keyring.Ring
	admin *sql.DB
	db    *postgres.DB
	store *api.PostgresSubjects
	log   *audit.Log
	pb.SubjectServiceClient
	http http.Handler
	jane string // her pseudonym
}

func newSubjectWorld(t *testing.T) *subjectWorld {
	t.Helper()
	l := testenv.MigratedPostgres(t)
	w := &subjectWorld{t: t}
	var err error
	if w.ring, err = keyring.Open(filepath.Join(t.TempDir(), "keys"), nil); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.ring.Close() })
	if _, err := w.ring.Create("acme", "bravo", tenant.System(0)); err != nil {
		t.Fatal(err)
	}
	if w.admin, err = sql.Open("pgx", l.AdminDSN); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.admin.Close() })
	w.db = l.Open(t, postgres.RoleApp)
	w.store, w.log = api.NewPostgresSubjects(w.db, w.ring), audit.NewLog(w.db, w.ring)
	s := testServer(t, func(d *api.Deps, _ *api.Options) { d.Subjects = w.store })
	w.SubjectServiceClient, w.http = pb.NewSubjectServiceClient(dial(t, s)), s.HTTPHandler()
	w.jane = w.person("acme", "jane@example.com")
	w.sealedEntry()
	return w
}

// person keeps an identity as hop 3 would.
func (w *subjectWorld) person(id tenant.ID, identity string) (pseudonym string) {
	w.t.Helper()
	found, err := w.store.Find(w.t.Context(), audit.Event{Tenant: id, Action: "subject.find"}, identity)
	if err != nil {
		w.t.Fatal(err)
	}
	at := keyring.Place{Table: "ledger.subject", Column: "identity", Row: found.Pseudonym}
	sealed, err := w.ring.Seal(nil, id, keyring.SealSubject, at, []byte(identity))
	if err != nil {
		w.t.Fatal(err)
	}
	w.exec(`insert into ledger.subject (tenant_id, pseudonym, identity, first_seen, last_seen) values ($1, $2, $3, '2026-11-20', '2026-11-22')`,
		string(id), found.Pseudonym, sealed)
	return found.Pseudonym
}

// sealedEntry writes entry 2 of acme, with one tag sealed and one not.
func (w *subjectWorld) sealedEntry() {
	w.t.Helper()
	e := chain.Entry{Kind: chain.Usage, Seq: 2}
	e.Event = event.Event{ID: "e-2", Tenant: "acme", OccurredAt: 1_760_000_000_000_000_000, Provider: "openai", Model: "m", Tags: []event.Tag{{Key: "team", Value: "a"}}}
	at := keyring.Place{Table: "ledger.entry", Column: "sealed_tags", Row: "e-2"}
	var err error
	e.Event.SealedTags, err = w.ring.Seal(nil, "acme", keyring.SealTags, at, event.AppendTagPairs(nil, []event.Tag{{Key: "patient", Value: "p-4711"}}))
	if err != nil {
		w.t.Fatal(err)
	}
	w.exec("alter table ledger.entry_0 disable trigger check_tenants")
	w.exec(`insert into ledger.entry_0 (tenant_id, seq, kind, key_epoch, canonical, chain, mac) values ('acme', 2, 1, 1, $1, '\x00', '\x00')`, e.Append(nil))
	e.Seq, e.Event.SealedTags = 3, nil
	w.exec(`insert into ledger.entry_0 (tenant_id, seq, kind, key_epoch, canonical, chain, mac) values ('acme', 3, 1, 1, $1, '\x00', '\x00')`, e.Append(nil))
	w.exec("alter table ledger.entry_0 enable trigger check_tenants")
}

func (w *subjectWorld) exec(statement string, args ...any) {
	w.t.Helper()
	if _, err := w.admin.ExecContext(w.t.Context(), statement, args...); err != nil {
		w.t.Fatal(err)
	}
}

// audited are the rows of a tenant's audit log, without the first n.
func (w *subjectWorld) audited(id tenant.ID, n int) (rows []string) {
	w.t.Helper()
	list, err := w.log.Rows(w.t.Context(), id, 0, 1000, false)
	if err != nil {
		w.t.Fatal(err)
	}
	for i := range list {
		ev, _, err := audit.Decode(list[i].Canonical)
		if err != nil {
			w.t.Fatal(err)
		}
		rows = append(rows, fmt.Sprintf("%s %s %s %s", ev.Actor, ev.Action, ev.Resource, ev.Outcome))
	}
	return rows[n:]
}

func (w *subjectWorld) ctx() context.Context { return as(w.t.Context(), "acme") }

func TestShowAndFindASubject(t *testing.T) {
	w := newSubjectWorld(t)
	before := len(w.audited("acme", 0))
	s, err := w.GetSubject(w.ctx(), &pb.GetSubjectRequest{Pseudonym: w.jane})
	if err != nil || s.GetIdentity() != "jane@example.com" || s.State != api.SubjectKnown || s.FirstSeen != "2026-11-20" || s.LastSeen != "2026-11-22" {
		t.Errorf("show: %v, %v", s, err)
	}
	s, err = w.FindSubject(w.ctx(), &pb.FindSubjectRequest{Identity: "jane@example.com"})
	if err != nil || s.Pseudonym != w.jane || s.State != api.SubjectKnown || s.Identity != nil {
		t.Errorf("find: %v, %v", s, err)
	}
	s, err = w.FindSubject(w.ctx(), &pb.FindSubjectRequest{Identity: "Jane@example.com"}) // another spelling is another person
	if err != nil || s.Pseudonym == w.jane || s.State != api.SubjectUnknown {
		t.Errorf("find another: %v, %v", s, err)
	}
	nobody := s.Pseudonym
	if s, err := w.GetSubject(w.ctx(), &pb.GetSubjectRequest{Pseudonym: nobody}); err != nil || s.Identity != nil || s.State != api.SubjectUnknown {
		t.Errorf("show an unknown one: %v, %v", s, err)
	}
	// The pseudonym is acme's: nobody of bravo has it, and bravo has another for her.
	bravo := &pb.GetSubjectRequest{TenantId: "bravo", Pseudonym: w.jane}
	if s, err := w.GetSubject(as(t.Context(), "root"), bravo); err != nil || s.State != api.SubjectUnknown {
		t.Errorf("of another tenant: %v, %v", s, err)
	}
	want := []string{
		"acme-key subject.show subject/" + w.jane + " ok", "acme-key subject.find subject/" + w.jane + " ok",
		"acme-key subject.find subject/" + nobody + " ok", "acme-key subject.show subject/" + nobody + " ok",
	}
	if got := w.audited("acme", before); !slices.Equal(got, want) {
		t.Errorf("audited %q, want %q", got, want)
	}
}

func TestEraseAndReadmitASubject(t *testing.T) {
	w := newSubjectWorld(t)
	before := len(w.audited("acme", 0))
	erase := func(pseudonym string) (*pb.Subject, error) {
		return w.EraseSubject(w.ctx(), &pb.EraseSubjectRequest{Pseudonym: pseudonym, Reason: "DSAR 12"})
	}
	s, err := erase(w.jane)
	if err != nil || s.State != api.SubjectErased || s.ErasedAt == nil || s.ForgottenBy.AsTime().Sub(s.ErasedAt.AsTime()).Hours() != 30*24 {
		t.Fatalf("erase: %v, %v", s, err)
	}
	first := s.ErasedAt.AsTime()
	if s, err := erase(w.jane); err != nil || !s.ErasedAt.AsTime().Equal(first) {
		t.Errorf("erased twice: %v, %v", s, err)
	}
	if s, err := w.GetSubject(w.ctx(), &pb.GetSubjectRequest{Pseudonym: w.jane}); err != nil || s.Identity != nil || s.State != api.SubjectErased {
		t.Errorf("after erasing: %v, %v", s, err)
	}
	var left int
	if err := w.admin.QueryRow("select count(*) from ledger.subject where identity is not null").Scan(&left); err != nil || left != 0 {
		t.Errorf("%d identities are left, %v", left, err)
	}
	stranger := strings.Repeat("ab", 16)
	if s, err := erase(stranger); err != nil || s.State != api.SubjectErased { // before the first event
		t.Errorf("erase a stranger: %v, %v", s, err)
	}
	if s, err := w.ReadmitSubject(w.ctx(), &pb.ReadmitSubjectRequest{Pseudonym: w.jane, Reason: "consent 7"}); err != nil || s.State != api.SubjectUnknown {
		t.Errorf("readmit: %v, %v", s, err)
	}
	if _, err := w.ReadmitSubject(w.ctx(), &pb.ReadmitSubjectRequest{Pseudonym: w.jane, Reason: "consent 7"}); status.Code(err) != codes.NotFound {
		t.Errorf("readmit nobody: %v", err)
	}
	want := []string{
		"acme-key subject.erase subject/" + w.jane + " ok", "acme-key subject.erase subject/" + w.jane + " ok",
		"acme-key subject.show subject/" + w.jane + " ok", "acme-key subject.erase subject/" + stranger + " ok",
		"acme-key subject.readmit subject/" + w.jane + " ok",
	}
	if got := w.audited("acme", before); !slices.Equal(got, want) {
		t.Errorf("audited %q, want %q", got, want)
	}
}

func TestOpenSealedTags(t *testing.T) {
	w := newSubjectWorld(t)
	before := len(w.audited("acme", 0))
	e, err := w.OpenEntry(w.ctx(), &pb.OpenEntryRequest{Seq: 2})
	if err != nil || e.EventId != "e-2" || !maps.Equal(e.Tags, map[string]string{"patient": "p-4711"}) {
		t.Errorf("open: %v, %v", e, err)
	}
	if e, err := w.OpenEntry(w.ctx(), &pb.OpenEntryRequest{Seq: 3}); err != nil || len(e.Tags) != 0 {
		t.Errorf("nothing sealed: %v, %v", e, err)
	}
	if _, err := w.OpenEntry(w.ctx(), &pb.OpenEntryRequest{Seq: 99}); status.Code(err) != codes.NotFound {
		t.Errorf("no entry: %v", err)
	}
	want := []string{"acme-key entry.open entry/2 ok", "acme-key entry.open entry/3 ok"}
	if got := w.audited("acme", before); !slices.Equal(got, want) {
		t.Errorf("audited %q, want %q", got, want)
	}
	// Sealed bytes that were moved to another entry do not open there, and the
	// attempt is in the audit log.
	w.exec(`update ledger.entry_0 set canonical = decode(replace(encode(canonical, 'hex'), encode('e-2', 'hex'), encode('e-9', 'hex')), 'hex') where seq = 2`)
	if e, err := w.OpenEntry(w.ctx(), &pb.OpenEntryRequest{Seq: 2}); status.Code(err) != codes.Internal {
		t.Errorf("moved: %v, %v", e, err)
	}
	if got := w.audited("acme", before+2); !slices.Equal(got, []string{"acme-key entry.open entry/2 failed"}) {
		t.Errorf("audited %q", got)
	}
}

// When the sealing root is destroyed nothing opens any more, and everything else
// goes on: entries are read, persons are found and erased.
func TestNothingOpensAfterTheRootIsDestroyed(t *testing.T) {
	w := newSubjectWorld(t)
	before := len(w.audited("acme", 0))
	if err := w.ring.Destroy("acme"); err != nil {
		t.Fatal(err)
	}
	if s, err := w.GetSubject(w.ctx(), &pb.GetSubjectRequest{Pseudonym: w.jane}); status.Code(err) != codes.FailedPrecondition {
		t.Errorf("show: %v, %v", s, err)
	}
	if e, err := w.OpenEntry(w.ctx(), &pb.OpenEntryRequest{Seq: 2}); status.Code(err) != codes.FailedPrecondition {
		t.Errorf("open: %v, %v", e, err)
	}
	if s, err := w.FindSubject(w.ctx(), &pb.FindSubjectRequest{Identity: "jane@example.com"}); err != nil || s.Pseudonym != w.jane {
		t.Errorf("find: %v, %v", s, err)
	}
	if s, err := w.EraseSubject(w.ctx(), &pb.EraseSubjectRequest{Pseudonym: w.jane, Reason: "r"}); err != nil || s.State != api.SubjectErased {
		t.Errorf("erase: %v, %v", s, err)
	}
	want := []string{
		"acme-key subject.show subject/" + w.jane + " failed", "acme-key entry.open entry/2 failed",
		"acme-key subject.find subject/" + w.jane + " ok", "acme-key subject.erase subject/" + w.jane + " ok",
	}
	if got := w.audited("acme", before); !slices.Equal(got, want) {
		t.Errorf("audited %q, want %q", got, want)
	}
}

func TestConfidentialTags(t *testing.T) {
	w := newSubjectWorld(t)
	before := len(w.audited("acme", 0))
	first, err := w.store.Version(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if c, err := w.GetConfidentialTags(w.ctx(), &pb.GetConfidentialTagsRequest{}); err != nil || len(c.TagKeys) != 0 || c.SetAt != nil {
		t.Errorf("before: %v, %v", c, err)
	}
	c, err := w.SetConfidentialTags(w.ctx(), &pb.SetConfidentialTagsRequest{TagKeys: []string{"patient", "case", "patient"}})
	if err != nil || !slices.Equal(c.TagKeys, []string{"case", "patient"}) || c.EffectiveAt.AsTime().Sub(c.SetAt.AsTime()).Minutes() != 1 {
		t.Errorf("set: %v, %v", c, err)
	}
	keys, err := w.store.TagKeys(t.Context(), "acme")
	if err != nil || !slices.Equal(keys, []string{"case", "patient"}) {
		t.Errorf("the edge reads %q, %v", keys, err)
	}
	if v, err := w.store.Version(t.Context()); err != nil || v <= first {
		t.Errorf("version %d after %d, %v", v, first, err)
	}
	if keys, err := w.store.TagKeys(t.Context(), "bravo"); err != nil || len(keys) != 0 {
		t.Errorf("bravo's are %q, %v", keys, err)
	}
	if c, err := w.SetConfidentialTags(w.ctx(), &pb.SetConfidentialTagsRequest{}); err != nil || len(c.TagKeys) != 0 || c.SetAt == nil {
		t.Errorf("none: %v, %v", c, err)
	}
	want := []string{"acme-key confidential.set confidential-tags ok", "acme-key confidential.set confidential-tags ok"}
	if got := w.audited("acme", before); !slices.Equal(got, want) {
		t.Errorf("audited %q, want %q", got, want)
	}
}

// brokenAudit has keys that open everything and authenticate no audit row.
type brokenAudit struct{ *keyring.Ring }

func (b brokenAudit) Derive(id tenant.ID, p keyring.Purpose, epoch uint32) ([keyring.KeyBytes]byte, error) {
	if p == keyring.Audit {
		return [keyring.KeyBytes]byte{}, errors.New("key service is away")
	}
	return b.Ring.Derive(id, p, epoch)
}

// What cannot be audited is neither shown nor done.
func TestNothingIsShownOrDoneUnaudited(t *testing.T) {
	w := newSubjectWorld(t)
	broken := api.NewPostgresSubjects(w.db, brokenAudit{w.ring})
	row := audit.Event{Tenant: "acme", Actor: "a", Action: "x"}
	for what, f := range map[string]func() (any, error){
		"show":  func() (any, error) { return broken.Show(t.Context(), row, w.jane) },
		"find":  func() (any, error) { return broken.Find(t.Context(), row, "jane@example.com") },
		"erase": func() (any, error) { return broken.Erase(t.Context(), row, w.jane) },
		"open":  func() (any, error) { return broken.Open(t.Context(), row, 2) },
		"set":   func() (any, error) { return broken.SetConfidential(t.Context(), row, []string{"k"}) },
	} {
		got, err := f()
		if !errors.Is(err, api.ErrUnavailable) || strings.Contains(fmt.Sprint(got), "jane@") || strings.Contains(fmt.Sprint(got), "p-4711") {
			t.Errorf("%s: %v, %v", what, got, err)
		}
	}
	if s, err := w.GetSubject(w.ctx(), &pb.GetSubjectRequest{Pseudonym: w.jane}); err != nil || s.GetIdentity() != "jane@example.com" {
		t.Errorf("afterwards: %v, %v", s, err)
	}
	if keys, err := w.store.TagKeys(t.Context(), "acme"); err != nil || len(keys) != 0 {
		t.Errorf("confidential tags are %q, %v", keys, err)
	}
}

// Requests that break a rule name the field, and never repeat an identity.
func TestSubjectRequestsAreChecked(t *testing.T) {
	w := newSubjectWorld(t)
	long := strings.Repeat("x", 300)
	for what, f := range map[string]func() error{
		"pseudonym": func() error { _, err := w.GetSubject(w.ctx(), &pb.GetSubjectRequest{Pseudonym: "jane"}); return err },
		"pseudonym in upper case": func() error {
			_, err := w.GetSubject(w.ctx(), &pb.GetSubjectRequest{Pseudonym: strings.Repeat("AB", 16)})
			return err
		},
		"identity empty": func() error { _, err := w.FindSubject(w.ctx(), &pb.FindSubjectRequest{}); return err },
		"identity long":  func() error { _, err := w.FindSubject(w.ctx(), &pb.FindSubjectRequest{Identity: long}); return err },
		"reason": func() error {
			_, err := w.EraseSubject(w.ctx(), &pb.EraseSubjectRequest{Pseudonym: w.jane})
			return err
		},
		"seq": func() error { _, err := w.OpenEntry(w.ctx(), &pb.OpenEntryRequest{}); return err },
		"tag key": func() error {
			_, err := w.SetConfidentialTags(w.ctx(), &pb.SetConfidentialTagsRequest{TagKeys: []string{long}})
			return err
		},
		"tag keys": func() error {
			_, err := w.SetConfidentialTags(w.ctx(), &pb.SetConfidentialTagsRequest{TagKeys: make([]string, 33)})
			return err
		},
	} {
		if err := f(); status.Code(err) != codes.InvalidArgument || strings.Contains(err.Error(), long) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// Each method needs its scope, over REST too.
func TestSubjectScopes(t *testing.T) {
	w := newSubjectWorld(t)
	for _, c := range []struct {
		method, path, body string
		scope              authn.Scope
	}{
		{"GET", "/v1/subjects/" + w.jane + "?tenant_id=acme", "", authn.Decrypt},
		{"POST", "/v1/subjects:find", `{"tenant_id":"acme","identity":"jane@example.com"}`, authn.Decrypt},
		{"POST", "/v1/subjects/" + strings.Repeat("ab", 16) + ":erase", `{"tenant_id":"acme","reason":"r"}`, authn.Admin},
		{"POST", "/v1/subjects/" + strings.Repeat("ab", 16) + ":readmit", `{"tenant_id":"acme","reason":"r"}`, authn.Admin},
		{"POST", "/v1/ledger/entries/2:open", `{"tenant_id":"acme"}`, authn.Decrypt},
		{"GET", "/v1/confidential-tags?tenant_id=acme", "", authn.Read},
		{"POST", "/v1/confidential-tags", `{"tenant_id":"acme","tag_keys":["k"]}`, authn.Admin},
	} {
		for _, token := range []string{"acme", "all-but"} {
			r := httptest.NewRequest(c.method, c.path, strings.NewReader(c.body))
			r.Header.Set("Authorization", "Bearer "+token)
			h := w.http
			if token == "all-but" {
				h = testServer(t, func(d *api.Deps, _ *api.Options) {
					d.Subjects = w.store
					d.Auth = testTokens{token: {Subject: "x", Tenants: []tenant.ID{"acme"}, Scopes: authn.AllScopes &^ c.scope}}
				}).HTTPHandler()
			}
			rec := httptest.NewRecorder()
			h.ServeHTTP(rec, r)
			if want := map[string]int{"acme": http.StatusOK, "all-but": http.StatusForbidden}[token]; rec.Code != want {
				t.Errorf("%s %s as %s: %d, want %d: %s", c.method, c.path, token, rec.Code, want, rec.Body)
			}
			if token == "all-but" && strings.Contains(rec.Body.String(), "jane@") {
				t.Errorf("%s tells who it is: %s", c.path, rec.Body)
			}
		}
	}
}
