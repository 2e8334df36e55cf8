package checkpoint

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/tallystick/tallystick/internal/tenant"
)

const (
	// postTime bounds one request to a witness.
	postTime = 10 * time.Second
	// postRetry is when a witness that failed is asked again.
	postRetry = 30 * time.Second
	// maxAnswerBytes bounds what is read of a witness's answer.
	maxAnswerBytes = 64 << 10
	// postAttempts is how often one checkpoint is sent when the witness names
	// another old size.
	postAttempts = 3
)

// Witness is a server of C2SP tlog-witness on another host.
type Witness struct {
	Key *Cosigner
	URL string // submission prefix
}

// ParseWitness reads "VKEY URL".
func ParseWitness(s string) (Witness, error) {
	vkey, prefix, ok := strings.Cut(strings.TrimSpace(s), " ")
	u, err := url.Parse(strings.TrimSpace(prefix))
	if !ok || err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Host == "" {
		return Witness{}, fmt.Errorf("%w: want \"VKEY URL\", got %.200q", ErrCosigner, s)
	}
	key, err := ParseCosigner(vkey)
	return Witness{Key: key, URL: strings.TrimSuffix(u.String(), "/")}, err
}

// poster sends new checkpoints to the witnesses, each from a goroutine of its
// own. Only the newest of a tenant waits: a witness that was away gets one
// checkpoint with a longer proof.
type poster struct {
	c     *Checkpointer
	lanes []*lane
}

// lane is one witness.
type lane struct {
	Witness
	c    *Checkpointer
	http *http.Client
	wake chan struct{}

	mu     sync.Mutex // protects what follows
	wait   map[tenant.ID]*Published
	sizes  map[tenant.ID]int64 // what the witness is known to have seen
	alarms map[tenant.ID]string
}

func newPoster(c *Checkpointer) *poster {
	p := &poster{c: c}
	for _, w := range c.opts.Witnesses {
		p.lanes = append(p.lanes, &lane{
			Witness: w, c: c, wake: make(chan struct{}, 1),
			http: &http.Client{Timeout: postTime, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }},
			wait: make(map[tenant.ID]*Published), sizes: make(map[tenant.ID]int64), alarms: make(map[tenant.ID]string),
		})
	}
	return p
}

// enqueue gives the newest checkpoint of a tenant to all witnesses. It never waits.
func (p *poster) enqueue(id tenant.ID, cp *Published) {
	for _, l := range p.lanes {
		l.mu.Lock()
		l.wait[id] = cp
		l.mu.Unlock()
		select {
		case l.wake <- struct{}{}:
		default:
		}
	}
}

// run posts until ctx ends.
func (p *poster) run(ctx context.Context) {
	var all sync.WaitGroup
	for _, l := range p.lanes {
		all.Go(func() { l.run(ctx) })
	}
	all.Wait()
}

// alarms are all that stands, in order.
func (p *poster) alarms() (list []string) {
	for _, l := range p.lanes {
		l.mu.Lock()
		for _, id := range slices.Sorted(maps.Keys(l.alarms)) {
			list = append(list, fmt.Sprintf("witness %s: tenant %s: %s", l.Key.Name(), id, l.alarms[id]))
		}
		l.mu.Unlock()
	}
	return list
}

func (l *lane) run(ctx context.Context) {
	retry := time.NewTicker(postRetry)
	defer retry.Stop()
	for {
		select {
		case <-l.wake:
		case <-retry.C:
		case <-ctx.Done():
			return
		}
		l.flush(ctx)
	}
}

// flush sends what waits, once. A witness that does not answer is not asked for
// the tenants after, too.
func (l *lane) flush(ctx context.Context) {
	l.mu.Lock()
	wait := l.wait
	l.wait = make(map[tenant.ID]*Published)
	l.mu.Unlock()
	away := false
	for _, id := range slices.Sorted(maps.Keys(wait)) {
		if ctx.Err() != nil {
			return
		}
		if away {
			l.again(id, wait[id])
			continue
		}
		err := l.post(ctx, id, wait[id])
		var refused *refusal
		if err != nil && !errors.As(err, &refused) {
			l.again(id, wait[id]) // it may pass
		}
		away = errors.Is(err, errAway)
		l.note(ctx, id, wait[id].Size, err)
	}
}

// again has a checkpoint wait for the next flush, unless a newer one does.
func (l *lane) again(id tenant.ID, p *Published) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, newer := l.wait[id]; !newer {
		l.wait[id] = p
	}
}

// note keeps how a post ended, and logs it when it is not as the one before.
func (l *lane) note(ctx context.Context, id tenant.ID, size int64, err error) {
	l.mu.Lock()
	before, failed := l.alarms[id]
	if err == nil {
		delete(l.alarms, id)
	} else {
		l.alarms[id] = err.Error()
	}
	l.mu.Unlock()
	about := []slog.Attr{slog.String("witness", l.Key.Name()), slog.String("tenant", string(id)), slog.Int64("size", size)}
	switch {
	case err != nil && err.Error() != before:
		l.c.log.LogAttrs(ctx, slog.LevelError, "a witness does not cosign", append(about, slog.Any("err", err))...)
	case err == nil && failed:
		l.c.log.LogAttrs(ctx, slog.LevelInfo, "a witness cosigns again", about...)
	}
}

// errAway is a witness that gave no answer.
var errAway = errors.New("it does not answer")

// refusal is a witness's answer that sending the same again cannot mend.
type refusal struct {
	status int
	detail string
}

func (r *refusal) Error() string { return fmt.Sprintf("it refuses (%d): %s", r.status, r.detail) }

// post obtains and keeps the cosignature of one checkpoint.
func (l *lane) post(ctx context.Context, id tenant.ID, p *Published) error {
	l.mu.Lock()
	old := l.sizes[id]
	l.mu.Unlock()
	for range postAttempts {
		status, kind, body, err := l.send(ctx, id, old, p)
		if err != nil {
			return err
		}
		if status == http.StatusOK {
			return l.accept(ctx, id, p, body)
		}
		seen, ok := conflictSize(status, kind, body)
		switch {
		case !ok:
			return refusalOf(status, body)
		case seen > p.Size:
			return &refusal{status, fmt.Sprintf("it has seen size %d, ours is %d: has this log been rolled back?", seen, p.Size)}
		case seen == old:
			return &refusal{status, fmt.Sprintf("it has seen another root at size %d", seen)}
		}
		old = seen
	}
	return errors.New("its size moves each time that it is asked")
}

func refusalOf(status int, body string) error {
	text, _, _ := strings.Cut(strings.TrimSpace(body), "\n")
	if status >= 500 || status == http.StatusTooManyRequests {
		return fmt.Errorf("it answers %d: %.200q", status, text)
	}
	return &refusal{status, fmt.Sprintf("%.200q", text)}
}

// conflictSize reads the size that the witness has, of a 409.
func conflictSize(status int, kind, body string) (int64, bool) {
	if status != http.StatusConflict || kind != "text/x.tlog.size" {
		return 0, false
	}
	text, ok := strings.CutSuffix(body, "\n")
	n, err := parseSize(text)
	return n, ok && err == nil
}

// send makes the request of tlog-witness: the old size, the proof, the note.
func (l *lane) send(ctx context.Context, id tenant.ID, old int64, p *Published) (status int, kind, body string, err error) {
	var proof []Hash
	if old > 0 && old < p.Size {
		if proof, err = Consistency(ctx, NewReader(l.c.store, l.c.source.Log(), id), old, p.Size, p.Size); err != nil {
			return 0, "", "", fmt.Errorf("consistency proof from %d to %d: %w", old, p.Size, err)
		}
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, l.URL+"/add-checkpoint", bytes.NewReader(AppendRequest(nil, old, proof, p.Note)))
	if err != nil {
		return 0, "", "", err
	}
	res, err := l.http.Do(req)
	if err != nil {
		return 0, "", "", fmt.Errorf("%w: %w", errAway, err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(io.LimitReader(res.Body, maxAnswerBytes))
	if err != nil {
		return 0, "", "", fmt.Errorf("its answer breaks off: %w", err)
	}
	return res.StatusCode, res.Header.Get("Content-Type"), string(b), nil
}

// accept verifies a cosignature and keeps it beside the note.
func (l *lane) accept(ctx context.Context, id tenant.ID, p *Published, lines string) error {
	line, err := l.Key.Cosignature(p.Note, lines)
	if err != nil {
		return err
	}
	log := l.c.source.Log()
	if err := l.c.dir.AddCosignature(log, id, p.Size, l.Key.KeyHash(), line); err != nil {
		return err
	}
	if err := l.c.store.AddCosignature(ctx, log, id, p.Size, l.Key.Name(), line); err != nil {
		return err
	}
	l.mu.Lock()
	l.sizes[id] = p.Size
	l.mu.Unlock()
	return nil
}

// AppendRequest appends the body of an add-checkpoint request.
func AppendRequest(b []byte, old int64, proof []Hash, signed string) []byte {
	b = strconv.AppendInt(append(b, "old "...), old, 10)
	b = append(b, '\n')
	for i := range proof {
		b = append(base64.StdEncoding.AppendEncode(b, proof[i][:]), '\n')
	}
	return append(append(b, '\n'), signed...)
}
