package api_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/tallystick/tallystick/api"
	"github.com/tallystick/tallystick/internal/tenant"

	pb "github.com/tallystick/tallystick/api/gen/tallystick/v1"
)

// fakeCheckpoints has checkpoints of the sizes 10, 20 … 120 of tenant acme's
// ledger, and one of the installation's audit log.
type fakeCheckpoints struct{}

func (fakeCheckpoints) all(log string, id tenant.ID) (list []api.Checkpoint) {
	switch log + "/" + string(id) {
	case "ledger/acme":
		for size := int64(120); size > 0; size -= 10 {
			list = append(list, api.Checkpoint{Size: size, Root: [32]byte{byte(size)}, Note: fmt.Sprint("note ", size), Cosignatures: []string{"— w x\n"}})
		}
	case "audit/system/0":
		list = append(list, api.Checkpoint{Size: 3, Note: "audit note"})
	}
	return list
}

func (f fakeCheckpoints) Checkpoint(_ context.Context, log string, id tenant.ID, size int64) (*api.Checkpoint, error) {
	for _, c := range f.all(log, id) {
		if size == 0 || c.Size == size {
			return &c, nil
		}
	}
	return nil, api.ErrNotFound
}

func (f fakeCheckpoints) Checkpoints(_ context.Context, log string, id tenant.ID, before int64, limit int) (list []api.Checkpoint, _ error) {
	for _, c := range f.all(log, id) {
		if (before == 0 || c.Size < before) && len(list) < limit {
			list = append(list, c)
		}
	}
	return list, nil
}

func (f fakeCheckpoints) Inclusion(_ context.Context, _ string, _ tenant.ID, seq, size int64) ([32]byte, [][32]byte, error) {
	if seq > size || size > 120 {
		return [32]byte{}, nil, fmt.Errorf("%w: entry %d of %d", api.ErrNotFound, seq, size)
	}
	return [32]byte{byte(seq)}, [][32]byte{{1}, {2}}, nil
}

func (fakeCheckpoints) Consistency(context.Context, string, tenant.ID, int64, int64) ([][32]byte, error) {
	return [][32]byte{{3}}, nil
}

func (fakeCheckpoints) SigningKeys(context.Context, string, tenant.ID) ([]*pb.SigningKey, error) {
	return []*pb.SigningKey{{Epoch: 1, Vkey: "v", Statement: "s"}}, nil
}

func TestCheckpoints(t *testing.T) {
	recovering := false
	server, err := api.New(api.Deps{
		Auth: credentials, Audit: &fakeAudit{}, Checkpoints: fakeCheckpoints{},
		Serving: func(_ context.Context, id tenant.ID) error {
			if recovering && id == "acme" {
				return fmt.Errorf("%w: it is being replayed", api.ErrUnavailable)
			}
			return nil
		},
	}, api.Options{})
	if err != nil {
		t.Fatal(err)
	}
	web := httptest.NewServer(server.HTTPHandler())
	defer web.Close()
	get := func(token, path string) (int, string) {
		t.Helper()
		req, err := http.NewRequest(http.MethodGet, web.URL+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer "+token)
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		b, err := io.ReadAll(res.Body)
		if err != nil {
			t.Fatal(err)
		}
		return res.StatusCode, string(b)
	}
	for _, c := range []struct {
		token, path string
		status      int
		body        string
	}{
		{"acme", "/v1/ledger/checkpoint", 200, `"note 120"`},
		{"acme", "/v1/ledger/checkpoint?size=30", 200, `"note 30"`},
		{"acme", "/v1/ledger/checkpoint?size=31", 404, ""},
		{"acme", "/v1/ledger/checkpoint?size=-1", 400, "size"},
		{"acme", "/v1/ledger/checkpoint?log=audit", 404, ""},
		{"acme", "/v1/ledger/checkpoint?log=other", 400, "log"},
		{"acme", "/v1/ledger/checkpoint?tenant_id=bravo", 403, ""},
		{"acme", "/v1/ledger/checkpoint?installation=true&log=audit", 403, ""},
		{"root", "/v1/ledger/checkpoint?installation=true&log=audit", 200, `"audit note"`},
		{"root", "/v1/ledger/checkpoint?installation=true&tenant_id=acme", 400, "tenant_id"},
		{"root", "/v1/ledger/checkpoint", 400, "tenant_id"},
		{"two", "/v1/ledger/checkpoint?tenant_id=acme", 200, `"note 120"`},
		{"sender", "/v1/ledger/checkpoint", 403, ""},
		{"nobody", "/v1/ledger/checkpoint", 401, ""},
		{"acme", "/v1/ledger/entries/7/proof", 200, `"leaf_hash":"07`},
		{"acme", "/v1/ledger/entries/7/proof?size=20", 200, `"note 20"`},
		{"acme", "/v1/ledger/entries/7/proof?size=21", 200, `"size":"21"`},
		{"acme", "/v1/ledger/entries/7/proof?size=6", 400, "size"},
		{"acme", "/v1/ledger/entries/0/proof", 400, "seq"},
		{"acme", "/v1/ledger/entries/x/proof", 400, ""},
		{"acme", "/v1/ledger/entries/121/proof", 404, ""},
		{"acme", "/v1/ledger/consistency?from=10", 200, `"to":"120"`},
		{"acme", "/v1/ledger/consistency?from=10&to=20", 200, `"03000000`},
		{"acme", "/v1/ledger/consistency", 400, "from"},
		{"acme", "/v1/ledger/consistency?from=20&to=10", 400, "to"},
		{"acme", "/v1/ledger/keys", 200, `"vkey":"v"`},
	} {
		status, body := get(c.token, c.path)
		if status != c.status || !strings.Contains(strings.ReplaceAll(body, ": ", ":"), c.body) {
			t.Errorf("%s as %s: %d, want %d with %s: %s", c.path, c.token, status, c.status, c.body, body)
		}
	}

	var sizes []string
	for token := ""; ; {
		_, body := get("acme", "/v1/ledger/checkpoints?page_size=5&page_token="+token)
		var page struct {
			Checkpoints []struct {
				Size string `json:"size"`
			} `json:"checkpoints"`
			Next string `json:"next_page_token"`
		}
		if err := json.Unmarshal([]byte(body), &page); err != nil {
			t.Fatal(err)
		}
		for _, c := range page.Checkpoints {
			sizes = append(sizes, c.Size)
		}
		if token = page.Next; token == "" {
			break
		}
	}
	if got := strings.Join(sizes, " "); got != "120 110 100 90 80 70 60 50 40 30 20 10" {
		t.Errorf("pages give %s", got)
	}

	recovering = true // nothing of a partition that is being replayed is served
	for _, path := range []string{"/v1/ledger/checkpoint", "/v1/ledger/head", "/v1/ledger/entries", "/v1/ledger/entries/1/proof", "/v1/events/x"} {
		if status, body := get("acme", path+"?tenant_id=acme"); status != 503 {
			t.Errorf("%s in recovery: %d %s", path, status, body)
		}
	}
	if status, _ := get("root", "/v1/ledger/checkpoint?installation=true&log=audit"); status != 200 {
		t.Errorf("another chain in recovery: %d", status)
	}
}
