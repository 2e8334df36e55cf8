package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Sizes of the proxy's benchmark.
const (
	proxyConns     = 64
	proxyIdle      = 10_000
	proxyIdleShort = 200
	proxyIdleMiB   = 300 // what the idle streams may take
)

// proxyBlock is what one block of load measured.
type proxyBlock struct {
	sample
	latencies []time.Duration // sorted
	broken    int             // streams that the part broke off
}

func (b *proxyBlock) quantile(q float64) time.Duration {
	if len(b.latencies) == 0 {
		return 0
	}
	return b.latencies[min(len(b.latencies)-1, int(q*float64(len(b.latencies))))]
}

// benchProxy measures the metering proxy beside a bare httputil.ReverseProxy and a
// direct call, in interleaved blocks: calls a second over 64 connections, latency
// over one, the first byte of streams, and the memory of idle streams. Provider, bare
// proxy and ours are processes of their own; the load is made here.
func (r *benchRun) benchProxy(ctx context.Context) (err error) {
	provider, err := startProxyPart(ctx, "provider", "", "")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, provider.stop()) }()
	bare, err := startProxyPart(ctx, "bare", provider.url, "")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, bare.stop()) }()
	ours, err := startProxyPart(ctx, "metering", provider.url, filepath.Join(r.dir, "proxy"))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, ours.stop()) }()
	r.printf("proxy (provider, proxy and load on the same cores; spool sealed and on disk)")
	parts := []*proxyPart{provider, bare, ours}
	for _, step := range []func(context.Context, []*proxyPart) error{r.proxyThroughput, r.proxyLatency, r.proxyFirstByte} {
		if err := step(ctx, parts); err != nil {
			return err
		}
	}
	return r.proxyIdleStreams(ctx, ours)
}

// proxyRounds runs interleaved blocks against each part.
func (r *benchRun) proxyRounds(ctx context.Context, parts []*proxyPart, conns int, query string, took, tookShort time.Duration) ([][]proxyBlock, error) {
	rounds := 6
	if r.short {
		rounds, took = 2, tookShort
	}
	out := make([][]proxyBlock, len(parts))
	for range rounds {
		for i, p := range parts {
			for _, d := range []time.Duration{took / 10, took} { // the first warms up
				b, err := p.load(ctx, conns, query, d)
				if err != nil {
					return nil, fmt.Errorf("%s: %w", p.name, err)
				}
				if d == took {
					out[i] = append(out[i], b)
				}
			}
		}
	}
	return out, nil
}

func (r *benchRun) proxyThroughput(ctx context.Context, parts []*proxyPart) error {
	got, err := r.proxyRounds(ctx, parts, proxyConns, "", 3*time.Second, 200*time.Millisecond)
	if err != nil {
		return err
	}
	for i, p := range parts {
		r.printBlocks(p.name+", 64 connections", got[i])
	}
	ratio := medianRatio(samples(got[2]), samples(got[1]))
	r.printf("  metering against bare: %.2f x req/s, p50 %.2f x, p99 %.2f x", ratio,
		quantileRatio(got[2], got[1], nil, 0.5), quantileRatio(got[2], got[1], nil, 0.99))
	r.set("proxy_vs_bare", "%.2f", ratio)
	return nil
}

func (r *benchRun) proxyLatency(ctx context.Context, parts []*proxyPart) error {
	got, err := r.proxyRounds(ctx, parts, 1, "", time.Second, 100*time.Millisecond)
	if err != nil {
		return err
	}
	for i, p := range parts {
		r.printBlocks(p.name+", one connection", got[i])
	}
	p50, p99 := added(got[2], got[0], 0.5), added(got[2], got[0], 0.99)
	r.printf("  added to a direct call: metering p50 %s p99 %s; bare p50 %s p99 %s: %.2f x and %.2f x", p50, p99,
		added(got[1], got[0], 0.5), added(got[1], got[0], 0.99),
		quantileRatio(got[2], got[1], got[0], 0.5), quantileRatio(got[2], got[1], got[0], 0.99))
	r.set("proxy_p50_us", "%d", p50.Microseconds())
	r.set("proxy_p99_us", "%d", p99.Microseconds())
	r.set("proxy_p50_vs_bare", "%.2f", quantileRatio(got[2], got[1], got[0], 0.5))
	r.set("proxy_p99_vs_bare", "%.2f", quantileRatio(got[2], got[1], got[0], 0.99))
	return nil
}

func (r *benchRun) proxyFirstByte(ctx context.Context, parts []*proxyPart) error {
	got, err := r.proxyRounds(ctx, parts, 1, "?stream", time.Second, 100*time.Millisecond)
	if err != nil {
		return err
	}
	delay := added(got[2], got[0], 0.5)
	broken := 0
	for i := range got[1] {
		broken += got[1][i].broken
	}
	r.printf("  first byte of a stream, added at p50: metering %s, bare %s (which broke off %d streams)", delay, added(got[1], got[0], 0.5), broken)
	r.set("proxy_ttfb_us", "%d", delay.Microseconds())
	return nil
}

// proxyIdleStreams opens streams that stay silent and says what they take: all
// resident memory of the proxy's process, its binary's pages too, and none of the
// provider's and of ours, which are processes of their own. Each stream is two files
// to the proxy, so a low limit of files means fewer streams.
func (r *benchRun) proxyIdleStreams(ctx context.Context, p *proxyPart) error {
	n := proxyIdle
	if r.short {
		n = proxyIdleShort
	}
	if may := (moreFiles() - 64) / 2; may < n {
		r.printf("  a process may open %d files here: %d idle streams instead of %d", 2*may+64, may, n)
		n = may
	}
	before := residentKiB(p.cmd.Process.Pid)
	conns := make([]*proxyConn, 0, n)
	defer func() {
		for _, c := range conns {
			c.Close()
		}
	}()
	for range n {
		c, err := p.dial(ctx)
		if err != nil {
			return fmt.Errorf("stream %d: %w", len(conns), err)
		}
		conns = append(conns, c)
		if err := c.send(p.request("?hold")); err != nil {
			return err
		}
		if err := c.firstByte(); err != nil {
			return fmt.Errorf("stream %d: %w", len(conns), err)
		}
	}
	after := residentKiB(p.cmd.Process.Pid)
	mib := (after + 1023) / 1024
	r.printf("  %d idle streams: %d MiB resident (%d before), %.1f KiB each", n, mib, before/1024, float64(after-before)/float64(n))
	r.set("proxy_idle_mib", "%d", mib)
	if !r.short && mib > proxyIdleMiB {
		r.printf("  that is more than %d MiB", proxyIdleMiB)
	}
	return nil
}

// request is the request that every part gets; the paths are ours, and the provider
// looks at none.
func (p *proxyPart) request(query string) []byte {
	if p.call != nil {
		return p.call
	}
	return benchCall("/openai/v1/chat/completions"+query, benchToken, "")
}

// benchCall is a call as OpenAI's SDK for Python makes it, with further headers.
func benchCall(path, token, further string) []byte {
	return fmt.Appendf(nil, "POST %s HTTP/1.1\r\nHost: bench\r\nAuthorization: Bearer %s\r\nContent-Type: application/json\r\n"+
		"Accept: application/json\r\nUser-Agent: OpenAI/Python 1.99.0\r\nX-Stainless-Lang: python\r\nX-Stainless-Retry-Count: 0\r\n%sContent-Length: %d\r\n\r\n%s",
		path, token, further, len(benchChatRequest), benchChatRequest)
}

// load sends requests over so many connections for a while. Of streams the latency
// is that of the first byte of the body.
func (p *proxyPart) load(ctx context.Context, conns int, query string, took time.Duration) (proxyBlock, error) {
	var b proxyBlock
	var mu sync.Mutex // protects failed and b
	var failed error
	var wg sync.WaitGroup
	own, proc := selfCPU(), treeCPU(p.cmd.Process.Pid)
	start := time.Now()
	for range conns {
		wg.Go(func() {
			latencies, broken, err := p.client(ctx, query, start.Add(took))
			mu.Lock()
			defer mu.Unlock()
			b.latencies, b.broken = append(b.latencies, latencies...), b.broken+broken
			failed = errors.Join(failed, err)
		})
	}
	wg.Wait()
	slices.Sort(b.latencies)
	b.sample = sample{rows: len(b.latencies), took: time.Since(start), own: selfCPU() - own, db: treeCPU(p.cmd.Process.Pid) - proc}
	return b, failed
}

// client sends one request after the other until a time. A bare proxy that breaks a
// stream off is called again: httputil.ReverseProxy does so now and then, when the
// answer begins before it has seen the request's end. No other part may.
func (p *proxyPart) client(ctx context.Context, query string, until time.Time) (latencies []time.Duration, broken int, err error) {
	c, err := p.dial(ctx)
	if err != nil {
		return nil, 0, err
	}
	defer func() { c.Close() }()
	request := p.request(query)
	for now := time.Now(); now.Before(until); now = time.Now() {
		first, err := c.exchange(request)
		switch {
		case err == nil && query == "":
			latencies = append(latencies, time.Since(now))
		case err == nil:
			latencies = append(latencies, first.Sub(now))
		case p.name != "bare" || query == "":
			return nil, broken, err
		default:
			broken++
			c.Close()
			if c, err = p.dial(ctx); err != nil {
				return nil, broken, err
			}
		}
	}
	return latencies, broken, nil
}

// exchange sends a request and reads the answer; first is when its body began.
func (c *proxyConn) exchange(request []byte) (first time.Time, err error) {
	if err := c.send(request); err != nil {
		return first, err
	}
	if err := c.firstByte(); err != nil {
		return first, err
	}
	first = time.Now()
	return first, c.rest()
}

// proxyConn is a client's connection: as little of HTTP as the three parts speak.
type proxyConn struct {
	net.Conn
	in   *bufio.Reader
	left int // of a body with a length, -1 is chunked
}

func (p *proxyPart) dial(ctx context.Context) (*proxyConn, error) {
	c, err := (&net.Dialer{}).DialContext(ctx, "tcp", strings.TrimPrefix(p.url, "http://"))
	if err != nil {
		return nil, err
	}
	return &proxyConn{Conn: c, in: bufio.NewReaderSize(c, 4096)}, nil
}

func (c *proxyConn) send(request []byte) error {
	_, err := c.Write(request)
	return err
}

// firstByte reads the headers and waits for the body to begin.
func (c *proxyConn) firstByte() error {
	status, err := c.in.ReadSlice('\n')
	if err != nil {
		return err
	}
	if !bytes.HasPrefix(status, []byte("HTTP/1.1 200 ")) {
		return fmt.Errorf("answered %q", status)
	}
	c.left = -1
	for {
		line, err := c.in.ReadSlice('\n')
		if err != nil {
			return err
		}
		if len(line) == 2 {
			break
		}
		if name, value, _ := bytes.Cut(line, []byte(":")); bytes.EqualFold(name, []byte("Content-Length")) {
			if c.left, err = strconv.Atoi(string(bytes.TrimSpace(value))); err != nil {
				return err
			}
		}
	}
	_, err = c.in.Peek(1)
	return err
}

// rest reads the body to its end.
func (c *proxyConn) rest() error {
	if c.left >= 0 {
		_, err := c.in.Discard(c.left)
		return err
	}
	for {
		line, err := c.in.ReadSlice('\n')
		if err != nil {
			return err
		}
		size, err := strconv.ParseInt(string(bytes.TrimSpace(line)), 16, 32)
		if err != nil {
			return err
		}
		if _, err := c.in.Discard(int(size) + 2); err != nil || size == 0 {
			return err
		}
	}
}

func samples(blocks []proxyBlock) []sample {
	out := make([]sample, len(blocks))
	for i := range blocks {
		out[i] = blocks[i].sample
	}
	return out
}

// added is the median over the rounds of what a part adds to a direct call.
func added(part, direct []proxyBlock, q float64) time.Duration {
	diffs := make([]float64, len(part))
	for i := range part {
		diffs[i] = float64(part[i].quantile(q) - direct[i].quantile(q))
	}
	return time.Duration(median(diffs))
}

// quantileRatio is the median over the rounds of one part's latency to another's,
// each less that of a direct call where there is one.
func quantileRatio(a, b, direct []proxyBlock, q float64) float64 {
	ratios := make([]float64, len(a))
	for i := range a {
		less := time.Duration(0)
		if direct != nil {
			less = direct[i].quantile(q)
		}
		ratios[i] = float64(a[i].quantile(q)-less) / float64(b[i].quantile(q)-less)
	}
	return median(ratios)
}

func (r *benchRun) printBlocks(name string, blocks []proxyBlock) {
	var p50, p99 []float64
	rates := make([]float64, len(blocks))
	for i := range blocks {
		p50, p99 = append(p50, float64(blocks[i].quantile(0.5))), append(p99, float64(blocks[i].quantile(0.99)))
		rates[i] = blocks[i].rate()
	}
	_, cpu := cpuPerRow(samples(blocks))
	r.printf("  %-26s %7.0f req/s (min %.0f, max %.0f)  p50 %s p99 %s  cpu us/req of the process %.1f", name,
		median(rates), slices.Min(rates), slices.Max(rates), time.Duration(median(p50)).Round(time.Microsecond),
		time.Duration(median(p99)).Round(time.Microsecond), cpu)
}
