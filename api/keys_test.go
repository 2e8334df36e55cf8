package api_test

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/tallystick/tallystick/api"
	"github.com/tallystick/tallystick/internal/keyring"

	pb "github.com/tallystick/tallystick/api/gen/tallystick/v1"
)

func keyServer(t *testing.T) (pb.KeyServiceClient, *keyring.Ring, *fakeAudit) {
	t.Helper()
	ring, err := keyring.Open(filepath.Join(t.TempDir(), "keys"), nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ring.Close() })
	if _, err := ring.Create("acme", "bravo"); err != nil {
		t.Fatal(err)
	}
	log := &fakeAudit{}
	s := testServer(t, func(d *api.Deps, _ *api.Options) { d.Keys, d.Audit = ring, log })
	return pb.NewKeyServiceClient(dial(t, s)), ring, log
}

// said is epochs as text.
func said(epochs []*pb.KeyEpoch) (out []string) {
	for _, e := range epochs {
		if !e.Since.IsValid() {
			out = append(out, "no time")
		}
		out = append(out, fmt.Sprintf("%s %d %s", e.Series, e.Epoch, e.State))
	}
	return out
}

func TestKeysRotateAndDestroy(t *testing.T) {
	c, ring, log := keyServer(t)
	acme, root := as(t.Context(), "acme"), as(t.Context(), "root")
	all, err := c.RotateKeys(acme, &pb.RotateKeysRequest{})
	if want := []string{"mac 2 next", "checkpoint 2 active", "audit 2 active", "sealing 2 active"}; err != nil || !slices.Equal(said(all.Epochs), want) {
		t.Errorf("rotate all: %v, %v", said(all.GetEpochs()), err)
	}
	one, err := c.RotateKeys(root, &pb.RotateKeysRequest{TenantId: "acme", Series: []string{"sealing"}})
	if err != nil || !slices.Equal(said(one.Epochs), []string{"sealing 3 active"}) {
		t.Errorf("rotate one: %v, %v", one, err)
	}
	list, err := c.ListKeys(acme, &pb.ListKeysRequest{})
	want := []string{
		"mac 1 active", "mac 2 next", "checkpoint 1 verify-only", "checkpoint 2 active", "audit 1 verify-only", "audit 2 active",
		"sealing 1 verify-only", "sealing 2 verify-only", "sealing 3 active",
	}
	if err != nil || !slices.Equal(said(list.Epochs), want) {
		t.Errorf("list: %v, %v", said(list.GetEpochs()), err)
	}
	if n, err := c.RewrapKeys(root, &pb.RewrapKeysRequest{}); err != nil || n.Keys != 5 {
		t.Errorf("rewrap: %v, %v", n, err)
	}
	if _, err := c.DestroySealingKeys(root, &pb.DestroySealingKeysRequest{TenantId: "acme", ConfirmTenantId: "acme"}); err != nil || !ring.Destroyed("acme") || ring.Destroyed("bravo") {
		t.Errorf("destroy: %v", err)
	}
	var rows []string
	for _, ev := range log.rows {
		rows = append(rows, fmt.Sprintf("%s %s %s %s", ev.Actor, ev.Action, ev.Tenant, ev.Outcome))
	}
	wantRows := []string{
		"acme-key key.rotate acme attempted", "acme-key key.rotate acme ok", "root key.rotate acme attempted", "root key.rotate acme ok",
		"root key.rewrap  attempted", "root key.rewrap  ok", "root key.destroy acme attempted", "root key.destroy acme ok",
	}
	if !slices.Equal(rows, wantRows) {
		t.Errorf("audited:\n%s", strings.Join(rows, "\n"))
	}
}

func TestKeysRefuse(t *testing.T) {
	c, ring, log := keyServer(t)
	acme, root := as(t.Context(), "acme"), as(t.Context(), "root")
	if err := ring.Destroy("bravo"); err != nil {
		t.Fatal(err)
	}
	for name, call := range map[string]struct {
		do   func() error
		want codes.Code
	}{
		"another tenant": {func() error { _, err := c.ListKeys(acme, &pb.ListKeysRequest{TenantId: "bravo"}); return err }, codes.PermissionDenied},
		"unknown tenant": {func() error { _, err := c.ListKeys(root, &pb.ListKeysRequest{TenantId: "nobody"}); return err }, codes.NotFound},
		"a reader rotates": {func() error {
			_, err := c.RotateKeys(as(t.Context(), "two"), &pb.RotateKeysRequest{TenantId: "acme"})
			return err
		}, codes.PermissionDenied},
		"unknown series": {func() error { _, err := c.RotateKeys(acme, &pb.RotateKeysRequest{Series: []string{"MAC"}}); return err }, codes.InvalidArgument},
		"destroyed":      {func() error { _, err := c.RotateKeys(root, &pb.RotateKeysRequest{TenantId: "bravo"}); return err }, codes.FailedPrecondition},
		"a tenant destroys": {func() error {
			_, err := c.DestroySealingKeys(acme, &pb.DestroySealingKeysRequest{ConfirmTenantId: "acme"})
			return err
		}, codes.PermissionDenied},
		"not confirmed": {func() error {
			_, err := c.DestroySealingKeys(root, &pb.DestroySealingKeysRequest{TenantId: "acme", ConfirmTenantId: "bravo"})
			return err
		}, codes.InvalidArgument},
		"a tenant rewraps": {func() error { _, err := c.RewrapKeys(acme, &pb.RewrapKeysRequest{}); return err }, codes.PermissionDenied},
		"not served": {func() error {
			s := testServer(t, nil)
			_, err := pb.NewKeyServiceClient(dial(t, s)).ListKeys(acme, &pb.ListKeysRequest{})
			return err
		}, codes.Unimplemented},
	} {
		if err := call.do(); status.Code(err) != call.want {
			t.Errorf("%s: %v, want %v", name, err, call.want)
		}
	}
	// What cannot be audited does not happen.
	log.err = errors.New("the audit log is away")
	if _, err := c.DestroySealingKeys(root, &pb.DestroySealingKeysRequest{TenantId: "acme", ConfirmTenantId: "acme"}); err == nil || ring.Destroyed("acme") {
		t.Errorf("destroyed without an audit row: %v", err)
	}
	if _, err := c.RotateKeys(root, &pb.RotateKeysRequest{TenantId: "acme"}); err == nil || ring.Epoch("acme", keyring.SealTags) != 1 {
		t.Errorf("rotated without an audit row: %v", err)
	}
}
