package evidence_test

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/tallystick/tallystick/ledger/evidence"
	"github.com/tallystick/tallystick/ledger/verify"
)

var rewriteFlag = flag.Bool("rewrite", false, "write testdata anew")

// TestVectors holds the packages in testdata, which other verifiers are tested
// with, against what is written today.
func TestVectors(t *testing.T) {
	one, _ := newCosigner(t, "witness.example/one", 21)
	w := newWorld(t, 200, 20, 40)
	w.ledger.sign(t, 120, one)
	w.ledger.useKey(t, w.ledger.origin, 9)
	w.ledger.sign(t, 150)
	w.audit.notes = nil
	w.audit.sign(t, 250, one)
	files := map[string][]byte{}
	files["whole.zip"], _ = w.write(evidence.Request{})
	files["range.zip"], _ = w.write(evidence.Request{From: 31, To: 110, Kept: []int64{20}})
	files["day.zip"], _ = w.write(evidence.Request{Dates: &evidence.Dates{From: day(3), Before: day(4), TimeZone: "UTC"}})
	files["keys.txt"] = []byte("# known from elsewhere\n" + w.ledger.keys[0].VKey + "\n" + w.audit.keys[0].VKey + "\n")
	files["witness.txt"] = []byte(witnessKey(t))
	files["checkpoint-20.txt"], files["checkpoint-150.txt"] = w.ledger.notes[0].Note, w.ledger.notes[3].Note
	macs := bytes.NewBufferString("tenant acme\n")
	for epoch := range uint32(2) {
		key, _ := macKey(epoch + 1)
		fmt.Fprintf(macs, "mac %d %x\n", epoch+1, key)
	}
	key, _ := macKey(1)
	fmt.Fprintf(macs, "audit 1 %x\n", key)
	files["mac-keys.txt"] = macs.Bytes()
	w.rewrite(77, true)
	forged := newWorld(t, 200, 20)
	forged.ledger = w.ledger
	files["forged.zip"], _ = forged.write(evidence.Request{})
	for name, want := range files {
		path := filepath.Join("testdata", name)
		if *rewriteFlag {
			if err := os.WriteFile(path, want, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		have, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(have, want) {
			t.Errorf("%s is not what is written today; go test -run TestVectors -rewrite, if that is meant", path)
		}
	}
	r := w.check(files["forged.zip"], w.trust())
	if r.Verdict != verify.Broken || r.FirstBad != 41 || r.Detector != verify.ByRoot {
		t.Errorf("%+v", r)
	}
}
