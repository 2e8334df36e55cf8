package api_test

import (
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/tallystick/tallystick/api"
	"github.com/tallystick/tallystick/internal/connections"
	"github.com/tallystick/tallystick/internal/postgres"
	"github.com/tallystick/tallystick/internal/testenv"

	pb "github.com/tallystick/tallystick/api/gen/tallystick/v1"
)

func TestConnections(t *testing.T) {
	ring := testenv.Ring(t, "acme", "bravo")
	store := connections.NewStore(testenv.MigratedPostgres(t).Open(t, postgres.RoleApp), ring)
	c := pb.NewConnectionServiceClient(dial(t, testServer(t, func(d *api.Deps, _ *api.Options) { d.Connections = store })))
	acme := as(t.Context(), "acme")
	ask := &pb.CreateConnectionRequest{Name: "logs", Source: "s3", Bucket: "acme-logs", Prefix: "prod/", Region: "eu-central-1", RoleArn: "arn:aws:iam::123456789012:role/tallystick"}
	made, err := c.CreateConnection(acme, ask)
	if err != nil || made.TenantId != "acme" || made.Bucket != "acme-logs" || !strings.HasPrefix(made.ExternalId, "tallystick-") {
		t.Fatalf("create: %v, %v", made, err)
	}
	want := func(what string, err error, code codes.Code) {
		t.Helper()
		if status.Code(err) != code {
			t.Errorf("%s: %v, want %v", what, err, code)
		}
	}
	_, err = c.CreateConnection(acme, ask)
	want("a name twice", err, codes.AlreadyExists)
	_, err = c.CreateConnection(acme, &pb.CreateConnectionRequest{Name: "x", Source: "ftp"})
	want("no source", err, codes.InvalidArgument)
	_, err = c.CreateConnection(acme, &pb.CreateConnectionRequest{TenantId: "bravo", Name: "x", Source: "s3"})
	want("for another tenant", err, codes.PermissionDenied)
	_, err = c.PauseConnection(acme, &pb.PauseConnectionRequest{ConnectionId: "con_none"})
	want("pause none", err, codes.NotFound)
	_, err = c.RemoveConnection(as(t.Context(), "root"), &pb.RemoveConnectionRequest{TenantId: "bravo", ConnectionId: made.ConnectionId})
	want("remove another tenant's", err, codes.NotFound)

	var names []string
	for _, n := range []string{"b", "c", "d"} {
		ask.Name = n
		if _, err := c.CreateConnection(acme, ask); err != nil {
			t.Fatal(err)
		}
	}
	for token := ""; ; {
		page, err := c.ListConnections(acme, &pb.ListConnectionsRequest{PageSize: 3, PageToken: token})
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range page.Connections {
			names = append(names, m.Name)
		}
		if token = page.NextPageToken; token == "" {
			break
		}
	}
	slices.Sort(names)
	if !slices.Equal(names, []string{"b", "c", "d", "logs"}) {
		t.Errorf("listed %q", names)
	}
	if _, err := c.PauseConnection(acme, &pb.PauseConnectionRequest{ConnectionId: made.ConnectionId}); err != nil {
		t.Error(err)
	}
	if _, err := c.RemoveConnection(acme, &pb.RemoveConnectionRequest{ConnectionId: made.ConnectionId}); err != nil {
		t.Error(err)
	}
	if now, err := c.GetBedrockSettings(acme, &pb.GetBedrockSettingsRequest{}); err != nil || !now.RequestMetadata {
		t.Errorf("settings: %v, %v", now, err)
	}
	if now, err := c.SetBedrockSettings(acme, &pb.SetBedrockSettingsRequest{}); err != nil || now.RequestMetadata {
		t.Errorf("set: %v, %v", now, err)
	}
	if now, err := c.GetBedrockSettings(acme, &pb.GetBedrockSettingsRequest{}); err != nil || now.RequestMetadata {
		t.Errorf("settings: %v, %v", now, err)
	}
	without := pb.NewConnectionServiceClient(dial(t, testServer(t, nil)))
	_, err = without.ListConnections(acme, &pb.ListConnectionsRequest{})
	want("without a store", err, codes.Unimplemented)
}
