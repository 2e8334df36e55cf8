package clients

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"testing"
)

// runCalls has a program make calls with the stack's token: it is given each as a line
// of JSON and prints a line with a result for each. What it says beside that, mostly
// SDKs' warnings about old models, is shown when it fails.
func runCalls[J any](t *testing.T, s *stack, name string, command, env []string, calls []J) (results []result) {
	t.Helper()
	var in, said bytes.Buffer
	enc := json.NewEncoder(&in)
	for _, call := range calls {
		if err := enc.Encode(call); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.CommandContext(t.Context(), command[0], command[1:]...) //nolint:gosec // of this repository
	cmd.Env = append(append(os.Environ(), "TALLYSTICK_TOKEN="+s.token, "NO_PROXY=127.0.0.1"), env...)
	cmd.Stdin, cmd.Stderr = &in, &said
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s: %v: %s", name, err, said.Bytes()[max(0, said.Len()-2000):])
	}
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		var r result
		if err := dec.Decode(&r); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatalf("%s: %v after %d results: %s", name, err, len(results), out[max(0, len(out)-2000):])
		}
		results = append(results, r)
	}
	if len(results) != len(calls) {
		t.Fatalf("%s: %d results of %d calls", name, len(results), len(calls))
	}
	return results
}
