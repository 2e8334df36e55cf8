package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
)

// proxyPart is a process of the benchmark.
type proxyPart struct {
	name string
	url  string
	call []byte // what it is sent, where that is not the other parts' request
	cmd  *exec.Cmd
	in   io.Closer
}

func startProxyPart(ctx context.Context, name, upstream, dir string, further ...string) (*proxyPart, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	args := append([]string{"bench-part", "--part", name, "--upstream", upstream, "--dir", dir}, further...)
	cmd := exec.CommandContext(ctx, self, args...) //nolint:gosec // ourselves
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	p := &proxyPart{name: name, cmd: cmd, in: in}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		return nil, errors.Join(fmt.Errorf("%s did not start: %w", name, err), p.stop())
	}
	p.url = strings.TrimSpace(line)
	return p, nil
}

func (p *proxyPart) stop() error {
	p.in.Close()
	return p.cmd.Wait()
}

// residentKiB is the resident memory of a process.
func residentKiB(pid int) int64 {
	status, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	for line := range strings.Lines(string(status)) {
		if rest, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			n, _ := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
			return n
		}
	}
	return 0
}
