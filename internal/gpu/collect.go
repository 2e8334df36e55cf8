package gpu

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// ErrAbsent: this host has not what the collector asks: no tool, no library.
var ErrAbsent = errors.New("gpu: not on this host")

// toolTimeout is how long a vendor's tool may take: nvidia-smi initialises the
// driver when nothing else holds it, and a hung device must not hang the agent.
const toolTimeout = 30 * time.Second

// SMI asks nvidia-smi: all figures and MIG instances from its XML, and the share
// of each process from pmon, which is missing on some devices.
type SMI struct {
	path string
	mig  bool // the newest look saw MIG instances, whose names only -L has
}

// NewSMI finds nvidia-smi: at path, or where the system has it if path is empty.
// The error matches [ErrAbsent] when it is not there.
func NewSMI(path string) (*SMI, error) {
	path, err := findTool(path, "nvidia-smi")
	if err != nil {
		return nil, err
	}
	return &SMI{path: path}, nil
}

// Name implements [Collector].
func (*SMI) Name() string { return SourceSMI }

// Collect implements [Collector].
func (c *SMI) Collect(ctx context.Context) (*Snapshot, error) {
	text, err := runTool(ctx, c.path, "-q", "-x")
	if err != nil {
		return nil, err
	}
	var list []byte
	if c.mig = bytes.Contains(text, []byte("<mig_device>")); c.mig {
		if list, err = runTool(ctx, c.path, "-L"); err != nil {
			return nil, err
		}
	}
	snap, err := ParseXML(text, list)
	if err != nil {
		return nil, err
	}
	for i, s := range snap.Samples {
		// nvidia-smi lists devices in the order of their numbers, and its XML does
		// not say the number, by which pmon names them.
		if s.MigUuid == "" && len(snap.Samples) == len(Inventory(snap)) {
			s.Index = new(uint32(i))
		}
	}
	if pmon, err := runTool(ctx, c.path, "pmon", "-c", "1"); err == nil {
		if err := ParsePmon(pmon, snap); err != nil {
			return nil, err
		}
	}
	snap.Taken = time.Time{} // its clock has seconds only, and no zone
	return snap, nil
}

// ROCm asks rocm-smi.
type ROCm struct{ path string }

// NewROCm finds rocm-smi, like [NewSMI].
func NewROCm(path string) (*ROCm, error) {
	path, err := findTool(path, "rocm-smi", "/opt/rocm/bin/rocm-smi")
	if err != nil {
		return nil, err
	}
	return &ROCm{path}, nil
}

// Name implements [Collector].
func (*ROCm) Name() string { return SourceROCm }

// Collect implements [Collector].
func (c *ROCm) Collect(ctx context.Context) (*Snapshot, error) {
	text, err := runTool(ctx, c.path, "-a", "--showmeminfo", "vram", "--json")
	if err != nil {
		return nil, err
	}
	// Warnings may stand before the object.
	if i := bytes.IndexByte(text, '{'); i > 0 {
		text = text[i:]
	}
	return ParseROCm(text)
}

// findTool is the absolute path of an executable: the one asked for, or the
// first of the names that the system has.
func findTool(path string, names ...string) (string, error) {
	if path != "" {
		if !filepath.IsAbs(path) {
			return "", fmt.Errorf("gpu: %q is not an absolute path", path)
		}
		names = []string{path}
	}
	for _, name := range names {
		if found, err := exec.LookPath(name); err == nil {
			return found, nil
		}
	}
	return "", fmt.Errorf("%w: %s", ErrAbsent, strings.Join(names, ", "))
}

// runTool runs a vendor's tool with fixed arguments and an environment of its
// own, and returns what it writes.
func runTool(ctx context.Context, path string, args ...string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, toolTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Env = []string{"LC_ALL=C", "PATH=" + os.Getenv("PATH"), "LD_LIBRARY_PATH=" + os.Getenv("LD_LIBRARY_PATH")}
	cmd.WaitDelay = time.Second
	out := &limited{left: maxInputBytes}
	cmd.Stdout = out
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("gpu: %s %s: %w", filepath.Base(path), args[0], err)
	}
	return out.buf.Bytes(), nil
}

// limited keeps a tool's output within bounds.
type limited struct {
	buf  bytes.Buffer
	left int
}

func (l *limited) Write(p []byte) (int, error) {
	if l.left -= len(p); l.left < 0 {
		return 0, errors.New("too much output")
	}
	return l.buf.Write(p)
}

// DCGM reads a DCGM exporter over HTTP.
type DCGM struct {
	url    string
	client *http.Client
}

// NewDCGM takes the exporter's address, such as http://127.0.0.1:9400/metrics.
func NewDCGM(address string) (*DCGM, error) {
	u, err := url.Parse(address)
	if err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" || u.User != nil {
		return nil, errors.New("gpu: the DCGM exporter's address must be http(s)://HOST:PORT/PATH, without a password")
	}
	return &DCGM{u.String(), &http.Client{
		Timeout:       10 * time.Second,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}, nil
}

// Name implements [Collector].
func (*DCGM) Name() string { return SourceDCGM }

// Collect implements [Collector].
func (c *DCGM) Collect(ctx context.Context) (*Snapshot, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, c.url, nil)
	if err != nil {
		return nil, err
	}
	resp, err := c.client.Do(req)
	if err != nil {
		return nil, fmt.Errorf("gpu: DCGM exporter: %w", err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("gpu: the DCGM exporter answers %s", resp.Status)
	}
	text, err := io.ReadAll(io.LimitReader(resp.Body, maxInputBytes+1))
	if err != nil {
		return nil, fmt.Errorf("gpu: DCGM exporter: %w", err)
	}
	return ParseDCGM(text)
}
