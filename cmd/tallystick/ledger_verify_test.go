package main

import (
	"bytes"
	"strings"
	"testing"

	"github.com/tallystick/tallystick/ledger/verify"
)

// A ledger that was held against no checkpoint does not look like one that was
// held against an empty one.
func TestVerifyTableNamesTheCheckpoint(t *testing.T) {
	for covered, want := range map[int64]string{0: "-", 57921: "57921"} {
		var out bytes.Buffer
		f := &ledgerFlags{output: "table"}
		if err := f.print(&out, []verify.Report{{Tenant: "acme", Verdict: verify.Intact, Entries: 58126, From: 1, To: 58126, Covered: covered}}); err != nil {
			t.Fatal(err)
		}
		head, row, _ := strings.Cut(out.String(), "\n")
		at := strings.Index(head, "CHECKPOINT")
		if at < 0 || !strings.HasPrefix(row[at:], want+" ") {
			t.Errorf("covered %d:\n%s", covered, out.String())
		}
	}
}
