package proxy

import (
	"bytes"
	"io"
	"net/http"
	"regexp"
	"strconv"
	"strings"
)

// What Anthropic says of a batch names the address of its results, at Anthropic. Its
// SDKs follow that: past the proxy, unmetered, with a token that means nothing there.
// So the proxy makes it a reference below the client's base URL, which the SDKs take as
// they take their own paths. Nothing else of the answer changes.

const batchesPath = "/v1/messages/batches"

// farResults finds such an address; its host and what stands before the path go.
var farResults = regexp.MustCompile(`("results_url"\s*:\s*")https?://[^"]*?(` + batchesPath + `/[^"]*")`)

// tellsBatches reports a call whose answer says where the results of batches are; the
// results themselves pass as they are.
func (x *exchange) tellsBatches() bool {
	return x.to.call.Batch == "" && x.r.Method != http.MethodHead && (x.to.path == batchesPath || strings.HasPrefix(x.to.path, batchesPath+"/"))
}

// nearResults lets the answer name its results relative to the client's base URL. One
// of maxReturn bytes or more is left as it is, and so is one in an encoding that was
// not asked for.
func nearResults(resp *http.Response) {
	if encoding := resp.Header.Get("Content-Encoding"); encoding != "" && encoding != "identity" {
		return
	}
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxReturn))
	if err == nil && len(b) < maxReturn {
		b = farResults.ReplaceAll(b, []byte("$1$2"))
		resp.ContentLength = int64(len(b))
		resp.Header.Set("Content-Length", strconv.Itoa(len(b)))
	}
	resp.Body = struct { // after b come the rest, the end or the error
		io.Reader
		io.Closer
	}{io.MultiReader(bytes.NewReader(b), resp.Body), resp.Body}
}
