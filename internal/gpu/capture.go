package gpu

import (
	"bytes"
	"fmt"
	"strings"
)

// section is one command's output in a capture file.
type section struct {
	phase   string // "idle", "load" or "capabilities"
	command string // such as "nvidia-smi --query-gpu=…"; empty for a note
	body    []byte
}

// captureRule separates the sections of a capture file.
const captureRule = "################"

// splitCapture reads a file of recorded outputs in the form of
// nvidia_gpu_exporter's captures: between two rules the lines "# phase :: what"
// and "# $ command", then what the command wrote.
func splitCapture(text []byte) []section {
	var list []section
	afterRule, inHead := false, false
	for line := range bytes.Lines(text) {
		trimmed := strings.TrimSpace(string(line))
		phase, _, titled := strings.Cut(strings.TrimPrefix(trimmed, "# "), " :: ")
		switch {
		case strings.HasPrefix(trimmed, captureRule):
			afterRule, inHead = true, false
			continue
		case afterRule && titled:
			list = append(list, section{phase: phase})
			inHead = true
		case inHead:
			if command, ok := strings.CutPrefix(trimmed, "# $ "); ok {
				list[len(list)-1].command = strings.TrimSpace(command)
			}
		case len(list) > 0:
			s := &list[len(list)-1]
			s.body = append(s.body, line...)
		}
		afterRule = false
	}
	return list
}

// ParseCapture reads a capture file: one snapshot for each phase in which the
// devices were queried, with the processes that were listed then.
func ParseCapture(text []byte) ([]*Snapshot, error) {
	if len(text) > maxInputBytes {
		return nil, fmt.Errorf("%w: %d bytes", ErrFormat, len(text))
	}
	var list []*Snapshot
	snaps := map[string]*Snapshot{} // by phase
	for _, s := range splitCapture(text) {
		snap := snaps[s.phase]
		var err error
		switch {
		case strings.Contains(s.command, "--query-gpu="):
			if snap, err = ParseQueryGPU(s.body); err == nil {
				snaps[s.phase] = snap
				list = append(list, snap)
			}
		case snap == nil:
		case strings.Contains(s.command, "--query-compute-apps="):
			err = ParseComputeApps(s.body, snap)
		case strings.HasPrefix(s.command, "nvidia-smi pmon"):
			err = ParsePmon(s.body, snap)
		}
		if err != nil {
			return nil, fmt.Errorf("%q: %w", s.phase, err)
		}
	}
	if len(list) == 0 {
		return nil, fmt.Errorf("%w: the capture has no --query-gpu", ErrFormat)
	}
	return list, nil
}
