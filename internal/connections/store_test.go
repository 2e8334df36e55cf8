package connections_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/tallystick/tallystick/internal/audit"
	"github.com/tallystick/tallystick/internal/authn"
	"github.com/tallystick/tallystick/internal/connections"
	"github.com/tallystick/tallystick/internal/postgres"
	"github.com/tallystick/tallystick/internal/tenant"
	"github.com/tallystick/tallystick/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

var (
	admin  = authn.Principal{Subject: "tok_admin", Tenants: []tenant.ID{"acme"}, Scopes: authn.AllScopes}
	bucket = connections.Place{Source: connections.S3, Bucket: "acme-bedrock-logs", Prefix: "prod/", Region: "eu-central-1", RoleARN: "arn:aws:iam::123456789012:role/tallystick"}
)

type world struct {
	*connections.Store
	log *audit.Log
	now time.Time
}

func newWorld(t *testing.T) *world {
	t.Helper()
	ring := testenv.Ring(t, "acme", "umbrella")
	db := testenv.MigratedPostgres(t).Open(t, postgres.RoleApp)
	w := &world{Store: connections.NewStore(db, ring), log: audit.NewLog(db, ring), now: time.Now()}
	w.SetClock(func() time.Time { return w.now })
	return w
}

func (w *world) create(t *testing.T, name string, p connections.Place) connections.Bedrock {
	t.Helper()
	c, err := w.Create(t.Context(), admin, connections.New{Tenant: "acme", Name: name, Place: p})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func (w *world) lease(t *testing.T, owner uuid.UUID) (l connections.Lease, ok bool) {
	t.Helper()
	l, ok, err := w.Lease(t.Context(), "acme", owner, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	return l, ok
}

func TestConnections(t *testing.T) {
	w := newWorld(t)
	c := w.create(t, "logs", bucket)
	other := w.create(t, "others", connections.Place{Source: connections.CloudWatch, LogGroup: "/aws/bedrock", Region: "us-east-1", RoleARN: bucket.RoleARN})
	if !strings.HasPrefix(c.Place.ExternalID, "tallystick-") || c.Place.ExternalID == other.Place.ExternalID || len(c.Place.ExternalID) < 30 {
		t.Errorf("external ids %q and %q", c.Place.ExternalID, other.Place.ExternalID)
	}
	if _, err := w.Create(t.Context(), admin, connections.New{Tenant: "acme", Name: "logs", Place: bucket}); !errors.Is(err, connections.ErrExists) {
		t.Errorf("a name twice: %v", err)
	}
	if list, err := w.List(t.Context(), "umbrella", "", 10); err != nil || len(list) != 0 {
		t.Errorf("another tenant sees %d connections: %v", len(list), err)
	}
	if err := w.SetPaused(t.Context(), admin, "umbrella", c.ID, true); !errors.Is(err, connections.ErrNotFound) {
		t.Errorf("another tenant pauses: %v", err)
	}
	if err := w.SetPaused(t.Context(), admin, "acme", c.ID, true); err != nil {
		t.Fatal(err)
	}
	if l, ok := w.lease(t, uuid.New()); !ok || l.ID != other.ID {
		t.Errorf("leased %q %t, want %q", l.ID, ok, other.ID)
	}
	if err := w.Remove(t.Context(), admin, "acme", other.ID); err != nil {
		t.Fatal(err)
	}
	if err := w.Remove(t.Context(), admin, "acme", other.ID); !errors.Is(err, connections.ErrNotFound) {
		t.Errorf("removed twice: %v", err)
	}
	list, err := w.List(t.Context(), "acme", "", 10)
	if err != nil || len(list) != 1 || list[0].ID != c.ID || !list[0].Paused || list[0].Place != c.Place {
		t.Errorf("list %+v, %v", list, err)
	}
	if keep, err := w.RequestMetadata(t.Context(), "acme"); err != nil || !keep {
		t.Errorf("metadata %t, %v", keep, err)
	}
	for _, want := range []bool{false, true, false} {
		if err := w.SetRequestMetadata(t.Context(), admin, "acme", want); err != nil {
			t.Fatal(err)
		}
		if keep, err := w.RequestMetadata(t.Context(), "acme"); err != nil || keep != want {
			t.Errorf("metadata %t, %v, want %t", keep, err, want)
		}
	}
	rows, err := w.log.Rows(t.Context(), "acme", 1, 100, false)
	if err != nil {
		t.Fatal(err)
	}
	var actions []string
	for i := range rows {
		ev, _, err := audit.Decode(rows[i].Canonical)
		if err != nil {
			t.Fatal(err)
		}
		actions = append(actions, strings.TrimPrefix(ev.Action, "connection."))
	}
	if got, want := strings.Join(actions, " "), "create create pause remove metadata metadata metadata"; got != want {
		t.Errorf("audited %s, want %s", got, want)
	}
}

func TestPlacesThatAreRefused(t *testing.T) {
	for want, change := range map[string]func(p *connections.Place){
		"bucket":    func(p *connections.Place) { p.Bucket = "Not A Bucket" },
		"role_arn":  func(p *connections.Place) { p.RoleARN = "arn:aws:iam::12:user/me" },
		"region":    func(p *connections.Place) { p.Region = "x.evil.example" },
		"prefix":    func(p *connections.Place) { p.Prefix = "a\nb" },
		"source":    func(p *connections.Place) { p.Source = "ftp" },
		"log_group": func(p *connections.Place) { p.LogGroup = "g" },
		"queue_url": func(p *connections.Place) {
			p.Source, p.Queue = connections.SQS, "https://sqs.eu-central-1.amazonaws.com.evil.example/123456789012/q"
		},
		"prefix is a path": func(p *connections.Place) {
			*p = connections.Place{Source: connections.Directory, Prefix: "../etc"}
		},
	} {
		p := bucket
		change(&p)
		if err := p.Validate(); !errors.Is(err, connections.ErrInvalid) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", want, err)
		}
	}
	for _, p := range []connections.Place{
		bucket, {Source: connections.Directory, Prefix: "acme/logs"},
		{Source: connections.SQS, Bucket: bucket.Bucket, Queue: "https://sqs.eu-central-1.amazonaws.com/123456789012/logs.fifo", Region: bucket.Region, RoleARN: bucket.RoleARN},
	} {
		if err := p.Validate(); err != nil {
			t.Errorf("%+v: %v", p, err)
		}
	}
}

// One process at a time reads a connection, the cursor moves with the counts, and
// only by the one that holds the lease.
func TestLeasesAndCursors(t *testing.T) {
	w := newWorld(t)
	w.create(t, "logs", bucket)
	ctx, mine, theirs := t.Context(), uuid.New(), uuid.New()
	l, ok := w.lease(t, mine)
	if !ok {
		t.Fatal("no lease")
	}
	if _, ok := w.lease(t, theirs); ok {
		t.Fatal("leased twice")
	}
	day := func(d int) string { return fmt.Sprintf("k/2026/11/%02d/00/", d) }
	for d := 1; d <= 3; d++ {
		p := connections.Progress{Series: "k/", Object: day(d) + "x.gz", Version: "v", Counts: connections.Counts{Objects: 1, Records: 10, Accepted: 9, Refused: 1}}
		if d == 3 {
			p.Position, p.Forward = day(2), true
		}
		if err := w.Done(ctx, &l, time.Minute, p); err != nil {
			t.Fatal(err)
		}
	}
	read, err := w.Read(ctx, &l, "k/")
	if err != nil || len(read) != 2 || read[day(2)+"x.gz"] != "v" {
		t.Errorf("behind the cursor: %v, %v", read, err)
	}
	if err := w.Done(ctx, &l, time.Minute, connections.Progress{Series: "k/", Position: day(1), Forward: true}); err != nil {
		t.Fatal(err)
	}
	if at, err := w.Cursor(ctx, &l, "k/"); err != nil || at != day(2) {
		t.Errorf("the cursor is at %q, %v: it went back", at, err)
	}
	w.now = w.now.Add(2 * time.Minute)
	stolen, ok := w.lease(t, theirs)
	if !ok {
		t.Fatal("a lease that is over was not given")
	}
	lost := connections.Progress{Series: "k/", Position: day(9), Counts: connections.Counts{Objects: 100}}
	if err := w.Done(ctx, &l, time.Minute, lost); !errors.Is(err, connections.ErrLost) {
		t.Errorf("the old holder: %v", err)
	}
	if err := w.Finish(ctx, &l, "", 0); !errors.Is(err, connections.ErrLost) {
		t.Errorf("the old holder ends: %v", err)
	}
	if err := w.Finish(ctx, &stolen, strings.Repeat("é", 400), time.Minute); err != nil {
		t.Fatal(err)
	}
	list, err := w.List(ctx, "acme", "", 1)
	if err != nil {
		t.Fatal(err)
	}
	if s := list[0].State; s.Objects != 3 || s.Records != 30 || s.Accepted != 27 || s.Refused != 3 || s.Failures != 1 || s.Failure == "" || !s.SucceededAt.IsZero() {
		t.Errorf("state %+v", s)
	}
	if _, ok := w.lease(t, mine); ok {
		t.Error("leased before its pause was over")
	}
	w.now = w.now.Add(2 * time.Minute)
	if l, ok = w.lease(t, mine); !ok {
		t.Fatal("no lease after the pause")
	}
	if err := w.Finish(ctx, &l, "", 0); err != nil {
		t.Fatal(err)
	}
	if list, err = w.List(ctx, "acme", "", 1); err != nil || list[0].State.Failures != 0 || list[0].State.SucceededAt.IsZero() {
		t.Errorf("after a good pass: %+v, %v", list, err)
	}
}
