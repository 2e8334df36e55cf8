package main

import (
	"bytes"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protojson"

	"github.com/tallystick/tallystick/internal/config"
	"github.com/tallystick/tallystick/internal/keyring"

	pb "github.com/tallystick/tallystick/api/gen/tallystick/v1"
)

// keysCommand runs `tallystick keys` against a server that answers with a
// message, and gives what was asked of it.
func keysCommand(t *testing.T, in string, args ...string) (asked, out string, err error) {
	t.Helper()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		asked += r.Method + " " + r.URL.String() + " " + string(body)
		answer, _ := protojson.Marshal(&pb.ListKeysResponse{TenantId: "acme", Epochs: []*pb.KeyEpoch{{Series: "mac", Epoch: 2, State: "next"}}})
		if strings.HasSuffix(r.URL.Path, ":rewrap") {
			answer = []byte(`{"keys":"25"}`)
		} else if strings.HasSuffix(r.URL.Path, ":destroy") {
			answer = []byte(`{"tenantId":"acme"}`)
		}
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write(answer)
	}))
	defer server.Close()
	t.Setenv("TALLYSTICK_TOKEN", "tok")
	var buf bytes.Buffer
	cmd := newKeysCommand()
	cmd.SetArgs(append(args, "--url", server.URL))
	cmd.SetIn(strings.NewReader(in))
	cmd.SetOut(&buf)
	cmd.SetErr(io.Discard)
	cmd.SilenceErrors, cmd.SilenceUsage = true, true
	err = cmd.Execute()
	return asked, buf.String(), err
}

func TestKeysCommands(t *testing.T) {
	for name, c := range map[string]struct {
		in, args, asked, out string
		code                 int
	}{
		"list":              {"", "list --tenant acme", "GET /v1/keys?tenant_id=acme", "mac     2      next", 0},
		"rotate":            {"", "rotate --tenant acme --series mac,sealing", "POST /v1/keys:rotate", "next", 0},
		"rewrap":            {"", "rewrap", "POST /v1/keys:rewrap", "25 root keys", 0},
		"destroy by flag":   {"", "destroy --tenant acme --yes", `"acme"`, "Destroyed", 0},
		"destroy by name":   {"acme\n", "destroy --tenant acme", "POST /v1/keys:destroy", "Destroyed", 0},
		"destroy: nothing":  {"", "destroy --tenant acme", "", "", exitUsage},
		"destroy: other":    {"bravo\n", "destroy --tenant acme", "", "", exitUsage},
		"destroy: nobody":   {"", "destroy --yes", "", "", exitUsage},
		"directory missing": {"", "list --keys-dir /nonexistent", "", "", exitUnknown},
	} {
		asked, out, err := keysCommand(t, c.in, strings.Fields(c.args)...)
		if code := exitCodeOf(err); code != c.code || !strings.Contains(asked, c.asked) || c.asked == "" && asked != "" || !strings.Contains(out, c.out) {
			t.Errorf("%s: exit %d (%v), asked %q, printed %q", name, code, err, asked, out)
		}
	}
}

func exitCodeOf(err error) int {
	if err == nil {
		return exitOK
	}
	return exitCode(err)
}

func TestKeysOfADirectory(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "keys")
	r, err := keyring.Open(dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if _, err := r.Create("acme", "bravo"); err != nil {
		t.Fatal(err)
	}
	if err := r.Destroy("bravo"); err != nil {
		t.Fatal(err)
	}
	_, out, err := keysCommand(t, "", "list", "--keys-dir", dir)
	if err != nil || strings.Count(out, "\n") != 9 || !strings.Contains(out, "acme    sealing     1      active") || !strings.Contains(out, "bravo   sealing     1      destroyed") {
		t.Errorf("%v:\n%s", err, out)
	}
}

// TestKeyServices opens what the settings name, as far as that asks nobody.
func TestKeyServices(t *testing.T) {
	t.Setenv("AWS_REGION", "")
	t.Setenv("AWS_CONFIG_FILE", os.DevNull)
	const gcp = "projects/p/locations/l/keyRings/r/cryptoKeys/k"
	for name, c := range map[string]struct {
		kms      config.KMS
		id       string
		previous int
		ok       bool
	}{
		"local":     {config.KMS{Kind: config.KMSLocal}, "", 0, true},
		"aws":       {config.KMS{Kind: config.KMSAWS, Key: "arn:aws:kms:eu-central-1:1:key/k", Previous: []string{"gcp:" + gcp}}, "aws:arn:aws:kms:eu-central-1:1:key/k", 1, true},
		"aws alias": {config.KMS{Kind: config.KMSAWS, Key: "alias/k", Region: "eu-central-1"}, "", 0, false},
		"gcp":       {config.KMS{Kind: config.KMSGCP, Key: gcp}, "gcp:" + gcp, 0, true},
		"vault":     {config.KMS{Kind: config.KMSVault, Key: "transit/k", Endpoint: "https://v", TokenFile: "/t"}, "vault:transit/k", 0, true},
		"no roots":  {config.KMS{Kind: config.KMSVault, Key: "transit/k", Endpoint: "https://v", TokenFile: "/t", CAFile: "/nonexistent"}, "", 0, false},
	} {
		o, err := keyringOptions(t.Context(), &config.Config{KMS: c.kms})
		if (err == nil) != c.ok {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if err != nil {
			if exitCode(err) != exitUsage {
				t.Errorf("%s: exit %d", name, exitCode(err))
			}
			continue
		}
		if (o.KMS == nil) != (c.id == "") || o.KMS != nil && o.KMS.ID() != c.id || len(o.Previous) != c.previous {
			t.Errorf("%s: %+v", name, o)
		}
	}
}
