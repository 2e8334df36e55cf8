package load

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"strings"

	"github.com/klauspost/compress/zstd"

	"github.com/tallystick/tallystick/internal/tokens"
)

// maxTraceLine bounds a line of a trace file.
const maxTraceLine = 64 << 10

// traceRow is one request of a trace.
type traceRow struct {
	atMicros  int64 // from an origin of the trace's own
	client    int32
	input     int64 // without cached
	cached    int64
	output    int64 // without reasoning
	reasoning int64
}

// traceForm is one published form of usage traces.
type traceForm struct {
	name   string
	header string
	parse  func(line []byte, row *traceRow) bool
	// model of a trace, by its file name where one form holds several.
	model func(file string) model
	// clients is how many clients a trace without clients is spread over.
	clients int64
}

var traceForms = []traceForm{
	{"ServeGen deepseek-r1", "ts_ms,client,input_tokens,output_tokens,reasoning_tokens", parseServeGenReason, fixedModel(reasoner), 0},
	{"ServeGen m-large", "ts_ms,client,input_tokens,output_tokens", parseServeGen, fixedModel(gpt4o), 0},
	{"Azure LLM inference", "TIMESTAMP,ContextTokens,GeneratedTokens", parseAzure, azureModel, 16},
	{"Mooncake", "ts_ms,input_tokens,cached_input_tokens,output_tokens,first_block,n_blocks", parseMooncake, fixedModel(kimi), 0},
}

func fixedModel(m model) func(string) model { return func(string) model { return m } }

// azureModel: the code trace is mapped to azure/gpt-4, the conversations to a
// small chat model, so that both together show two prices.
func azureModel(file string) model {
	if strings.Contains(file, "conv") {
		return gpt4oMini
	}
	return azureGPT4
}

// traceReader streams the rows of a trace file.
type traceReader struct {
	form  *traceForm
	file  *os.File
	zstd  *zstd.Decoder
	lines *bufio.Reader
	line  int64
}

// openTraceFile opens a trace and finds its form by its header. The error wraps
// ErrTrace and names the file's base name and line.
func openTraceFile(path string) (*traceReader, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrTrace, err)
	}
	r := &traceReader{file: f}
	raw := bufio.NewReaderSize(f, 64<<10)
	var in io.Reader = raw
	if magic, _ := raw.Peek(4); string(magic) == "\x28\xb5\x2f\xfd" {
		r.zstd, err = zstd.NewReader(raw, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxMemory(256<<20))
		if err != nil {
			r.close()
			return nil, fmt.Errorf("%w: %w", ErrTrace, err)
		}
		in = r.zstd
	}
	r.lines = bufio.NewReaderSize(in, maxTraceLine)
	header, err := r.readLine()
	if err != nil && !errors.Is(err, errEnd) {
		r.close()
		return nil, err
	}
	for i := range traceForms {
		if string(header) == traceForms[i].header {
			r.form = &traceForms[i]
			return r, nil
		}
	}
	r.close()
	return nil, fmt.Errorf("%w: %s: its first line is the header of no known form (ServeGen, Azure LLM inference, Mooncake)", ErrTrace, baseName(path))
}

func (r *traceReader) close() {
	if r.zstd != nil {
		r.zstd.Close()
	}
	_ = r.file.Close()
}

// readLine returns the next line without its end; it is valid until the next call.
func (r *traceReader) readLine() ([]byte, error) {
	r.line++
	line, err := r.lines.ReadSlice('\n')
	switch {
	case err == nil:
		line = line[:len(line)-1]
	case errors.Is(err, io.EOF) && len(line) == 0:
		return nil, errEnd
	case !errors.Is(err, io.EOF):
		return nil, r.fail(err)
	}
	if n := len(line); n > 0 && line[n-1] == '\r' {
		line = line[:n-1]
	}
	return line, nil
}

func (r *traceReader) fail(err error) error {
	return fmt.Errorf("%w: %s, line %d: %w", ErrTrace, baseName(r.file.Name()), r.line, err)
}

var errRow = errors.New("not a row of the header's form")

func (r *traceReader) next(row *traceRow) error {
	for {
		line, err := r.readLine()
		if err != nil {
			return err
		}
		if len(line) == 0 {
			continue
		}
		if !r.form.parse(line, row) {
			return r.fail(errRow)
		}
		if r.form.clients > 0 {
			d := newDice(0, streamClient, r.line)
			row.client = int32(d.below(r.form.clients))
		}
		return nil
	}
}

// traceExtent is what a first pass over a trace finds out.
type traceExtent struct {
	rows        int64
	first, last int64 // microseconds, the least and the greatest
	origin      int64 // of the first row
	maxClient   int32
	// kept are the rows, when there are at most keepRows of them.
	kept []keptRow
}

// keepRows bounds the rows that the first pass keeps (28 bytes each), so that
// replaying them later costs no reading: the machine then belongs to the server
// under test. A longer trace is read a second time.
const keepRows = 2_000_000

// keptRow is a traceRow in little memory.
type keptRow struct {
	atSeconds, atMicros                      int32 // since the trace's first row
	client, input, cached, output, reasoning int32
}

// keep notes a row, or drops all of them when one does not fit.
func (x *traceExtent) keep(r *traceRow) {
	if x.kept == nil && x.rows > 0 {
		return
	}
	at := r.atMicros - x.origin
	fits := x.rows < keepRows && at >= 0 && at < math.MaxInt32*1_000_000
	for _, n := range [...]int64{r.input, r.cached, r.output, r.reasoning} {
		fits = fits && n <= math.MaxInt32
	}
	if !fits {
		x.kept = nil
		return
	}
	x.kept = append(x.kept, keptRow{
		int32(at / 1_000_000), int32(at % 1_000_000), r.client, int32(r.input), int32(r.cached), int32(r.output), int32(r.reasoning),
	})
}

// row gives a kept row back.
func (x *traceExtent) row(i int64, r *traceRow) {
	k := &x.kept[i]
	*r = traceRow{
		x.origin + int64(k.atSeconds)*1_000_000 + int64(k.atMicros), k.client,
		int64(k.input), int64(k.cached), int64(k.output), int64(k.reasoning),
	}
}

// scan reads the trace, or its first rows up to limit.
func (r *traceReader) scan(limit int64) (x traceExtent, err error) {
	var row traceRow
	for limit == 0 || x.rows < limit {
		if err := r.next(&row); errors.Is(err, errEnd) {
			break
		} else if err != nil {
			return x, err
		}
		if x.rows == 0 {
			x.origin, x.first, x.last = row.atMicros, row.atMicros, row.atMicros
		}
		x.first, x.last = min(x.first, row.atMicros), max(x.last, row.atMicros)
		x.maxClient = max(x.maxClient, row.client)
		x.keep(&row)
		x.rows++
	}
	if x.rows == 0 {
		return x, fmt.Errorf("%w: %s has no rows", ErrTrace, baseName(r.file.Name()))
	}
	return x, nil
}

// trace is a source that replays a file.
type trace struct {
	r      *traceReader // nil when the rows were kept
	extent traceExtent
	shift  int64 // nanoseconds to add
	n      int64
	mods   []model
	profs  []profile
	row    traceRow
}

func openTrace(o *Options) (*trace, error) {
	r, err := openTraceFile(o.Trace)
	if err != nil {
		return nil, err
	}
	t := &trace{mods: []model{r.form.model(baseName(o.Trace))}}
	t.extent, err = r.scan(o.Events)
	r.close()
	if err != nil {
		return nil, err
	}
	if t.extent.kept == nil {
		if t.r, err = openTraceFile(o.Trace); err != nil {
			return nil, err
		}
	}
	t.shift = o.Base.UnixNano() - t.extent.last*1000
	if o.FromStart {
		t.shift = o.Base.UnixNano() - t.extent.first*1000
	}
	for c := int32(0); c <= t.extent.maxClient; c++ {
		t.profs = append(t.profs, newProfile(c))
	}
	return t, nil
}

func (t *trace) models() []model     { return t.mods }
func (t *trace) profiles() []profile { return t.profs }

func (t *trace) close() {
	if t.r != nil {
		t.r.close()
	}
}

func (t *trace) next(c *call) error {
	if t.n >= t.extent.rows {
		return errEnd
	}
	row := &t.row
	if t.r == nil {
		t.extent.row(t.n, row)
	} else if err := t.r.next(row); err != nil {
		return err
	}
	*c = call{position: t.n, at: row.atMicros*1000 + t.shift, profile: row.client, client: row.client, tenant: -1}
	c.tokens[tokens.Input] = row.input
	c.tokens[tokens.CacheRead] = row.cached
	c.tokens[tokens.Output] = row.output
	c.tokens[tokens.Reasoning] = row.reasoning
	t.n++
	return nil
}
