package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/spf13/cobra"
)

// gatewaysOrder is the last line of the benchmark beside other gateways. Figures of
// several are of our proxy, the bare one, Portkey and LiteLLM, in that order.
var gatewaysOrder = []string{"proxy_rps", "bare_rps", "portkey_rps", "litellm_rps", "vs_portkey", "vs_litellm",
	"p50_us", "p99_us", "cpu_us", "cpu_vs_portkey", "cpu_vs_litellm", "provider_rps"}

func newBenchGatewaysCommand() *cobra.Command {
	r := &benchRun{figures: map[string]string{}}
	var deploy string
	cmd := &cobra.Command{
		Use:   "gateways",
		Short: "Measure the proxy beside Portkey's gateway and LiteLLM's proxy",
		Long: "Measures calls a second through the metering proxy, a bare httputil.ReverseProxy, Portkey's gateway and LiteLLM's proxy,\n" +
			"one after the other over the same 64 connections, to the same local provider. make bench/gateways installs them.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			r.out = cmd.OutOrStdout()
			err := r.benchGateways(cmd.Context(), deploy)
			// Who is interrupted has its processes killed, which is no news.
			return errors.Join(cmd.Context().Err(), unlessDone(cmd.Context(), err))
		},
	}
	cmd.Flags().BoolVar(&r.short, "short", false, "a few seconds: shows that it runs, not how fast")
	cmd.Flags().StringVar(&deploy, "deploy", "deploy", "folder deploy of a checkout, in which make bench/gateways installed the gateways")
	return cmd
}

func unlessDone(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// benchGateways starts all that is measured, checks that each answers as the provider
// does, measures it in interleaved blocks, and checks again.
func (r *benchRun) benchGateways(ctx context.Context, deploy string) error {
	deploy, err := filepath.Abs(deploy)
	if err != nil {
		return err
	}
	portkey, litellm, err := gatewayVersions(deploy)
	if err != nil {
		return err
	}
	r.printf("gateways: Portkey %s, LiteLLM %s with %d workers; provider, gateway and load on the same %d CPUs", portkey, litellm, runtime.NumCPU(), runtime.NumCPU())
	if r.dir, err = os.MkdirTemp("", "tallystick-gateways-"); err != nil {
		return err
	}
	defer os.RemoveAll(r.dir)
	parts, stop, err := r.startGateways(ctx, deploy)
	defer stop()
	if err != nil {
		return err
	}
	got, err := r.proxyRounds(ctx, parts, proxyConns, "", 3*time.Second, 200*time.Millisecond)
	if err != nil {
		return err
	}
	for _, p := range parts {
		if err := p.checkAnswer(ctx); err != nil {
			return fmt.Errorf("after the load: %w", err)
		}
	}
	r.reportGateways(parts, got)
	return nil
}

// startGateways starts the provider and what stands before it, in the order of the
// report. What it started stop ends, also after an error.
func (r *benchRun) startGateways(ctx context.Context, deploy string) (parts []*proxyPart, stop func(), err error) {
	var stops []func()
	stop = func() {
		for _, s := range stops {
			s()
		}
	}
	addrs, err := freeAddrs(2)
	if err != nil {
		return nil, stop, err
	}
	upstream := ""
	for _, name := range []string{"provider", "bare", "metering"} {
		p, err := startProxyPart(ctx, name, upstream, filepath.Join(r.dir, "proxy"))
		if err != nil {
			return nil, stop, err
		}
		if parts, stops = append(parts, p), append(stops, func() { _ = p.stop() }); name == "provider" {
			upstream = p.url
		}
	}
	for i, start := range []func(context.Context, string, string, string, string) (*gateway, error){startPortkey, startLiteLLM} {
		g, err := start(ctx, deploy, r.dir, addrs[i], upstream)
		if err != nil {
			return nil, stop, err
		}
		parts, stops = append(parts, &g.proxyPart), append(stops, g.stop)
	}
	for _, p := range parts {
		if err := p.checkAnswer(ctx); err != nil {
			return nil, stop, err
		}
	}
	return parts, stop, nil
}

// benchAnswer is what every gateway must pass on of the provider's answer. LiteLLM
// writes the answer anew, so bytes cannot be compared.
type benchAnswer struct {
	ID      string
	Choices [1]struct {
		Message      struct{ Role, Content string }
		FinishReason string `json:"finish_reason"`
	}
	Usage struct {
		Prompt     int `json:"prompt_tokens"`
		Completion int `json:"completion_tokens"`
	}
}

// checkAnswer makes one call and wants the provider's answer. That the calls of the
// load are answered with 200 is checked there.
func (p *proxyPart) checkAnswer(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	c, err := p.dial(ctx)
	if err != nil {
		return fmt.Errorf("%s: %w", p.name, err)
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { c.Close() })()
	if err := c.send(p.request("")); err != nil {
		return fmt.Errorf("%s: %w", p.name, err)
	}
	resp, err := http.ReadResponse(c.in, nil)
	if err != nil {
		return fmt.Errorf("%s: %w", p.name, err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil {
		return fmt.Errorf("%s: %w", p.name, err)
	}
	var got, want benchAnswer
	if err := json.Unmarshal([]byte(benchChatAnswer), &want); err != nil {
		return err
	}
	if err := json.Unmarshal(body, &got); err != nil || resp.StatusCode != http.StatusOK || got != want {
		return fmt.Errorf("%s does not give the provider's answer: %s: %s", p.name, resp.Status, body[:min(len(body), 500)])
	}
	return nil
}

func (r *benchRun) reportGateways(parts []*proxyPart, got [][]proxyBlock) {
	var p50s, p99s, cpus []string
	cpu := map[string]float64{}
	for i, p := range parts {
		r.printBlocks(p.name+", 64 connections", got[i])
		rate := fmt.Sprintf("%.0f", medianRate(samples(got[i])))
		_, cpu[p.name] = cpuPerRow(samples(got[i]))
		r.set(strings.Replace(p.name, "metering", "proxy", 1)+"_rps", "%s", rate)
	}
	// Provider, bare, metering, Portkey, LiteLLM.
	for _, i := range []int{2, 1, 3, 4} {
		p50s = append(p50s, fmt.Sprint(medianQuantile(got[i], 0.5).Microseconds()))
		p99s = append(p99s, fmt.Sprint(medianQuantile(got[i], 0.99).Microseconds()))
		cpus = append(cpus, fmt.Sprintf("%.0f", cpu[parts[i].name]))
	}
	r.set("p50_us", "%s", strings.Join(p50s, "/"))
	r.set("p99_us", "%s", strings.Join(p99s, "/"))
	r.set("cpu_us", "%s", strings.Join(cpus, "/"))
	for _, i := range []int{3, 4} {
		name := parts[i].name
		ratio := medianRatio(samples(got[2]), samples(got[i]))
		r.set("vs_"+name, "%.1f", ratio)
		r.set("cpu_vs_"+name, "%.1f", cpu[name]/cpu["metering"])
		r.printf("  metering against %s: %.1f x req/s, and %s spends %.1f x the CPU on a request", name, ratio, name, cpu[name]/cpu["metering"])
	}
	r.printLine("gateways:", gatewaysOrder)
}

// medianQuantile is the median over the rounds of a quantile of the latency.
func medianQuantile(blocks []proxyBlock, q float64) time.Duration {
	values := make([]float64, len(blocks))
	for i := range blocks {
		values[i] = float64(blocks[i].quantile(q))
	}
	return time.Duration(median(values))
}

// errNoGateways is what is said of gateways that are not installed.
var errNoGateways = errors.New("make bench/gateways installs them")

// gatewayVersions are those of the installed packages.
func gatewayVersions(deploy string) (portkey, litellm string, err error) {
	text, err := os.ReadFile(filepath.Join(deploy, "gateways", "node_modules", "@portkey-ai", "gateway", "package.json"))
	if err != nil {
		return "", "", fmt.Errorf("portkey: %w: %w", err, errNoGateways)
	}
	var p struct{ Version string }
	if err := json.Unmarshal(text, &p); err != nil {
		return "", "", fmt.Errorf("portkey: %w: %w", err, errNoGateways)
	}
	// The list is copied there when all of it is installed.
	text, err = os.ReadFile(filepath.Join(deploy, "clients", "venv", "litellm", "installed.txt"))
	if err != nil {
		return "", "", fmt.Errorf("litellm: %w: %w", err, errNoGateways)
	}
	for line := range strings.Lines(string(text)) {
		if v, ok := strings.CutPrefix(line, "litellm=="); ok {
			return p.Version, strings.TrimSpace(v), nil
		}
	}
	return "", "", fmt.Errorf("litellm is not among what is installed: %w", errNoGateways)
}
