// Package witness is a witness of transparency logs (C2SP tlog-witness): on
// another host than the log it remembers the newest checkpoint of each log that
// it knows, and cosigns a checkpoint only if it continues that one.
//
// It promises that it never cosigns two checkpoints of one log of which neither
// continues the other, whatever is sent and whenever it is killed: the check,
// the new state on disk and the signature are one step per log, in that order.
// It serves no entries and knows nothing of what a log holds. State that cannot
// be read stops it from starting; it never begins anew by itself.
package witness

import (
	"crypto/ed25519"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/mod/sumdb/note"

	"github.com/tallystick/tallystick/ledger/checkpoint"
)

const (
	// maxProofLines is the specification's bound.
	maxProofLines = 63
	// MaxRequestBytes bounds a request: the proof, and a checkpoint with many
	// signatures.
	MaxRequestBytes = 128 << 10
	sizeType        = "text/x.tlog.size"
)

// Options of a Witness.
type Options struct {
	// Name and Key are the cosigner's.
	Name string
	Key  ed25519.PrivateKey
	// Logs are the verifier keys of the logs that are witnessed; a key's name is
	// its log's origin. A log may have several keys.
	Logs []note.Verifier
	// StateDir keeps the newest checkpoint of each log, one file each. It belongs
	// to this witness alone.
	StateDir string
	// Now is the time that cosignatures state; nil is time.Now.
	Now func() time.Time
}

// Witness answers add-checkpoint. It is safe for concurrent use.
type Witness struct {
	opts  Options
	state *state
	log   *slog.Logger
	logs  map[string]*witnessed
}

// witnessed is one log.
type witnessed struct {
	keys []note.Verifier

	mu   sync.Mutex      // held from the check of the old size until the new state is on disk
	seen checkpoint.Head // Size 0: never cosigned
}

// New opens the state and makes a Witness. Close gives the state back.
func New(opts Options, log *slog.Logger) (*Witness, error) {
	if opts.Now == nil {
		opts.Now = time.Now
	}
	if _, err := checkpoint.NewCosigner(opts.Name, opts.Key.Public().(ed25519.PublicKey)); err != nil {
		return nil, err
	}
	if len(opts.Logs) == 0 {
		return nil, errors.New("witness: no log to witness")
	}
	st, err := openState(opts.StateDir)
	if err != nil {
		return nil, err
	}
	w := &Witness{opts: opts, state: st, log: log, logs: make(map[string]*witnessed)}
	for _, key := range opts.Logs {
		l := w.logs[key.Name()]
		if l == nil {
			l = &witnessed{}
			if l.seen, err = st.read(key.Name()); err != nil {
				return nil, errors.Join(err, st.close())
			}
			w.logs[key.Name()] = l
		}
		l.keys = append(l.keys, key)
	}
	return w, nil
}

// Close gives up the state directory.
func (w *Witness) Close() error { return w.state.close() }

// VKey is the verifier key of the cosignatures.
func (w *Witness) VKey() string {
	c, err := checkpoint.NewCosigner(w.opts.Name, w.opts.Key.Public().(ed25519.PublicKey))
	if err != nil {
		return "" // New has checked it
	}
	return c.VKey()
}

// Handler serves POST /add-checkpoint.
func (w *Witness) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /add-checkpoint", w.addCheckpoint)
	return mux
}

// answer is a status and its body.
type answer struct {
	status int
	kind   string
	body   string
}

func refuse(status int, why string) answer {
	return answer{status, "text/plain; charset=utf-8", why + "\n"}
}

// conflict tells the size that was cosigned last.
func conflict(size int64) answer {
	return answer{http.StatusConflict, sizeType, strconv.FormatInt(size, 10) + "\n"}
}

func (w *Witness) addCheckpoint(rw http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(http.MaxBytesReader(rw, r.Body, MaxRequestBytes))
	if err != nil {
		body = nil
	}
	a := w.add(body)
	if a.status != http.StatusOK {
		w.log.LogAttrs(r.Context(), slog.LevelWarn, "checkpoint refused", slog.Int("status", a.status), slog.String("err", strings.TrimSpace(a.body)))
	}
	h := rw.Header()
	h.Set("Content-Type", a.kind)
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	rw.WriteHeader(a.status)
	_, _ = io.WriteString(rw, a.body) // the client has gone
}

// add decides one request (C2SP tlog-witness, add-checkpoint).
func (w *Witness) add(body []byte) answer {
	req, err := parseRequest(body)
	if err != nil {
		return refuse(http.StatusBadRequest, err.Error())
	}
	l := w.logs[req.head.Origin]
	if l == nil {
		return refuse(http.StatusNotFound, "the log is not known here")
	}
	head, err := checkpoint.Open(req.signed, req.head.Origin, l.keys...)
	switch {
	case errors.Is(err, checkpoint.ErrSignature):
		return refuse(http.StatusForbidden, "no signature of a key that is trusted for the log")
	case err != nil:
		return refuse(http.StatusBadRequest, err.Error())
	case req.old > head.Size:
		return refuse(http.StatusBadRequest, "the old size is above the checkpoint's")
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if req.old != l.seen.Size {
		return conflict(l.seen.Size)
	}
	if head.Size == l.seen.Size && head.Size > 0 && head.Root != l.seen.Root {
		return conflict(l.seen.Size)
	}
	if !continues(&l.seen, &head, req.proof) {
		return refuse(http.StatusUnprocessableEntity, "the consistency proof does not verify")
	}
	return w.cosign(l, &head, req.signed)
}

// continues reports whether the proof shows that head continues what was seen.
func continues(seen, head *checkpoint.Head, proof []checkpoint.Hash) bool {
	switch {
	case head.Size == 0:
		return len(proof) == 0 && head.Root == checkpoint.EmptyRoot()
	case seen.Size == 0 || seen.Size == head.Size:
		return len(proof) == 0
	}
	return checkpoint.VerifyConsistency(seen, head, proof) == nil
}

// cosign makes the head the log's newest, durably, and signs it then.
func (w *Witness) cosign(l *witnessed, head *checkpoint.Head, signed string) answer {
	if head.Size > l.seen.Size {
		if err := w.state.write(head.Origin, signed); err != nil {
			w.log.Error("state is not written", "origin", head.Origin, "err", err)
			return refuse(http.StatusInternalServerError, "the state cannot be kept")
		}
		l.seen = *head
	}
	text, _, _ := strings.Cut(signed, "\n\n")
	line, err := checkpoint.CosignLine(w.opts.Name, w.opts.Key, text+"\n", w.opts.Now())
	if err != nil {
		return refuse(http.StatusInternalServerError, "the checkpoint cannot be signed")
	}
	return answer{http.StatusOK, "text/plain; charset=utf-8", line}
}

// request is the body of add-checkpoint.
type request struct {
	old    int64
	proof  []checkpoint.Hash
	signed string
	head   checkpoint.Head // not verified
}

var errRequest = errors.New("malformed request")

// parseRequest reads a body: the line "old SIZE", proof lines, an empty line, a note.
func parseRequest(body []byte) (r request, err error) {
	lines, signed, ok := strings.Cut(string(body), "\n\n")
	if !ok {
		return r, fmt.Errorf("%w: no empty line before a checkpoint", errRequest)
	}
	first, rest, more := strings.Cut(lines, "\n")
	size, isOld := strings.CutPrefix(first, "old ")
	n, err := strconv.ParseUint(size, 10, 63)
	if !isOld || err != nil || strconv.FormatUint(n, 10) != size {
		return r, fmt.Errorf("%w: the first line is not \"old SIZE\"", errRequest)
	}
	r.old, r.signed = int64(n), signed
	if more {
		if r.proof, err = parseProof(rest); err != nil {
			return r, err
		}
	}
	if r.head, err = checkpoint.OpenUnverified(signed); err != nil {
		return r, fmt.Errorf("%w: %w", errRequest, err)
	}
	return r, nil
}

func parseProof(lines string) (proof []checkpoint.Hash, err error) {
	for line := range strings.SplitSeq(lines, "\n") {
		b, err := base64.StdEncoding.Strict().DecodeString(line)
		if err != nil || len(b) != checkpoint.HashSize || len(line) != base64.StdEncoding.EncodedLen(checkpoint.HashSize) {
			return nil, fmt.Errorf("%w: a proof line is no hash", errRequest)
		}
		if proof = append(proof, checkpoint.Hash(b)); len(proof) > maxProofLines {
			return nil, fmt.Errorf("%w: more than %d proof lines", errRequest, maxProofLines)
		}
	}
	return proof, nil
}
