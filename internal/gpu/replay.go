package gpu

import (
	"crypto/sha256"
	"encoding/csv"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/klauspost/compress/zstd"

	pb "github.com/tallystick/tallystick/api/gen/tallystick/v1"
)

// Recording is a file that is played again: a capture of nvidia-smi, its XML,
// rocm-smi's JSON, the exporter's text, or one of the two tables below, each
// also compressed with zstd (.zst). Which it is, is told by its content.
//
//   - Polls: ts, gpu_model, experiment, utilization_gpu_pct, pstate, temperature_c,
//     sm_clock_mhz, power_draw_w, power_draw_average_w, … : one device per model
//     and experiment, which is its host.
//   - Allocation: ts, vc, gpus_total, gpus_running, … : a row is expanded to
//     gpus_total devices of the host vc, of which gpus_running are allocated to the
//     team vc. What was allocated says nothing of how busy it was: the samples
//     have no utilisation.
type Recording struct {
	name string
	open func() (io.ReadCloser, error)
	next func() (*Snapshot, error)
	time func() (time.Time, error) // of the next look, instead of next: for tables
	body io.Closer

	// First and Last are the times of its first and last look; both zero when the
	// recording has no times of its own.
	First, Last time.Time
}

// OpenRecording opens a file and reads it once to find its times.
func OpenRecording(path string) (*Recording, error) {
	r := &Recording{name: filepath.Base(path), open: func() (io.ReadCloser, error) { return openMaybeZstd(path) }}
	if err := r.rewind(); err != nil {
		return nil, err
	}
	for {
		t, err := r.nextTime()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, errors.Join(fmt.Errorf("%s: %w", r.name, err), r.Close())
		}
		if t.IsZero() {
			continue
		}
		if r.First.IsZero() || t.Before(r.First) {
			r.First = t
		}
		if t.After(r.Last) {
			r.Last = t
		}
	}
	return r, r.rewind()
}

// nextTime passes over one look.
func (r *Recording) nextTime() (time.Time, error) {
	if r.time != nil {
		return r.time()
	}
	s, err := r.next()
	if err != nil {
		return time.Time{}, err
	}
	return s.Taken, nil
}

// Next is the next look, with its own time in Taken; io.EOF after the last.
func (r *Recording) Next() (*Snapshot, error) {
	s, err := r.next()
	if err != nil {
		return nil, err
	}
	for _, m := range s.Samples {
		m.Source = SourceReplay
		if masked(m.GpuUuid) && m.Vendor != VendorAMD {
			m.GpuUuid = unmask(r.name, m.GetIndex())
		}
	}
	return s, nil
}

// Close closes the file.
func (r *Recording) Close() error { return r.body.Close() }

// unmask makes up the uuid that a recording has hidden, the same at each replay.
func unmask(name string, index uint32) string {
	sum := sha256.Sum256([]byte(name + "/" + decimal(uint64(index))))
	h := hex.EncodeToString(sum[:16])
	return "GPU-" + h[:8] + "-" + h[8:12] + "-" + h[12:16] + "-" + h[16:20] + "-" + h[20:]
}

func openMaybeZstd(path string) (io.ReadCloser, error) {
	f, err := os.Open(path)
	if err != nil || !strings.HasSuffix(path, ".zst") {
		return f, err
	}
	d, err := zstd.NewReader(f, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(64<<20))
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return &zstdFile{d, f}, nil
}

type zstdFile struct {
	*zstd.Decoder
	f *os.File
}

func (z *zstdFile) Close() error {
	z.Decoder.Close()
	return z.f.Close()
}

// rewind opens the file and finds out what it is.
func (r *Recording) rewind() error {
	if r.body != nil {
		r.body.Close()
	}
	body, err := r.open()
	if err != nil {
		return err
	}
	r.body = body
	head := make([]byte, 4096)
	n, err := io.ReadFull(body, head)
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
		return errors.Join(fmt.Errorf("%s: %w", r.name, err), body.Close())
	}
	r.time = nil
	text := io.MultiReader(strings.NewReader(string(head[:n])), body)
	switch start := strings.TrimSpace(string(head[:n])); {
	case strings.HasPrefix(start, "ts,gpu_model,experiment,"):
		t := &table{rows: csv.NewReader(text), layout: "2006-01-02T15:04:05.999", look: (*table).poll}
		r.next, r.time = t.next, t.time
	case strings.HasPrefix(start, "ts,vc,gpus_total,gpus_running,"):
		t := &table{rows: csv.NewReader(text), layout: time.DateTime, look: (*table).allocation}
		r.next, r.time = t.next, t.time
	case strings.HasPrefix(start, captureRule):
		r.next = whole(text, ParseCapture)
	case strings.HasPrefix(start, "<?xml"):
		r.next = whole(text, one(func(b []byte) (*Snapshot, error) { return ParseXML(b, nil) }))
	case strings.HasPrefix(start, "{"):
		r.next = whole(text, one(ParseROCm))
	case strings.HasPrefix(start, "# HELP"), strings.HasPrefix(start, "DCGM_FI_"):
		r.next = whole(text, one(ParseDCGM))
	default:
		return errors.Join(fmt.Errorf("%w: %s is no recording that is known", ErrFormat, r.name), body.Close())
	}
	return nil
}

// one makes a parser of one snapshot into one of a list.
func one(parse func([]byte) (*Snapshot, error)) func([]byte) ([]*Snapshot, error) {
	return func(b []byte) ([]*Snapshot, error) {
		s, err := parse(b)
		return []*Snapshot{s}, err
	}
}

// whole gives the snapshots of a file that is parsed as one.
func whole(text io.Reader, parse func([]byte) ([]*Snapshot, error)) func() (*Snapshot, error) {
	var list []*Snapshot
	read := false
	return func() (*Snapshot, error) {
		if !read {
			b, err := io.ReadAll(io.LimitReader(text, maxInputBytes+1))
			if err != nil {
				return nil, err
			}
			if list, err = parse(b); err != nil {
				return nil, err
			}
			read = true
		}
		if len(list) == 0 {
			return nil, io.EOF
		}
		s := list[0]
		list = list[1:]
		return s, nil
	}
}

// table is a CSV file with a header, whose rows are looks.
type table struct {
	rows   *csv.Reader
	layout string // of ts
	look   func(*table, time.Time) (*Snapshot, error)
	header []string
	values map[string]string
	uuids  map[string][]string // of the devices of a virtual cluster
}

// time reads a row and returns its time.
func (t *table) time() (time.Time, error) {
	if t.header == nil {
		header, err := t.rows.Read()
		if err != nil {
			return time.Time{}, fmt.Errorf("%w: no header", ErrFormat)
		}
		t.header, t.values = header, map[string]string{}
		t.rows.ReuseRecord = true
	}
	cells, err := t.rows.Read()
	if errors.Is(err, io.EOF) {
		return time.Time{}, err
	}
	if err != nil {
		return time.Time{}, fmt.Errorf("%w: %w", ErrFormat, err)
	}
	for i, name := range t.header {
		t.values[name] = cells[i]
	}
	at, err := time.Parse(t.layout, t.values["ts"])
	if err != nil {
		return time.Time{}, fmt.Errorf("%w: ts", ErrFormat)
	}
	return at, nil
}

// next reads a row as a look.
func (t *table) next() (*Snapshot, error) {
	at, err := t.time()
	if err != nil {
		return nil, err
	}
	return t.look(t, at)
}

// poll is one look at one device.
func (t *table) poll(at time.Time) (*Snapshot, error) {
	row := t.values
	host := clip(row["gpu_model"] + "/" + row["experiment"])
	m := &pb.GpuSample{GpuUuid: unmask(host, 0), Model: present(row["gpu_model"]), Vendor: VendorNVIDIA}
	gpuUtilization.set(m, row["utilization_gpu_pct"], "")
	performance.set(m, row["pstate"], "")
	temperature.set(m, row["temperature_c"], "")
	smClock.set(m, row["sm_clock_mhz"], "")
	power.set(m, row["power_draw_w"], "")
	power.set(m, row["power_draw_average_w"], "")
	return &Snapshot{Taken: at, Host: host, Samples: []*pb.GpuSample{m}}, nil
}

// maxAllocated bounds the devices that one row may stand for.
const maxAllocated = 10_000

// allocation is a minute of a virtual cluster.
func (t *table) allocation(at time.Time) (*Snapshot, error) {
	total, err := strconv.Atoi(t.values["gpus_total"])
	running, err2 := strconv.Atoi(t.values["gpus_running"])
	if errors.Join(err, err2) != nil || total < 0 || running < 0 || running > total || total > maxAllocated {
		return nil, fmt.Errorf("%w: a row of allocations", ErrFormat)
	}
	vc := clip(t.values["vc"])
	if t.uuids == nil {
		t.uuids = map[string][]string{}
	}
	uuids := t.uuids[vc]
	for len(uuids) < total {
		uuids = append(uuids, unmask("vc/"+vc, uint32(len(uuids))))
	}
	t.uuids[vc] = uuids
	s := &Snapshot{Taken: at, Host: vc}
	for i := range total {
		m := &pb.GpuSample{GpuUuid: uuids[i], Vendor: VendorNVIDIA, Index: new(uint32(i))}
		if i < running {
			m.Workloads = []*pb.GpuWorkload{{Team: vc, Allocated: new(true)}}
		}
		s.Samples = append(s.Samples, m)
	}
	return s, nil
}
