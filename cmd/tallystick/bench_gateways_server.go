package main

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/tallystick/tallystick/internal/embedded"
)

const (
	gatewayStartTime = 3 * time.Minute       // LiteLLM imports for long where the CPUs are busy
	gatewayCalmTime  = time.Second           // a started gateway uses next to no CPU for so long
	gatewayCalmCPU   = 50 * time.Millisecond // that is next to none
)

// gateway is somebody else's gateway beside our proxy: a process group of its own.
type gateway struct {
	proxyPart
	log *os.File
}

// startPortkey starts Portkey's gateway as its documentation does: one Node.js
// process in production mode, here without its console. Callers name the provider
// and its address, which must be one that the gateway trusts.
func startPortkey(ctx context.Context, deploy, dir, addr, provider string) (*gateway, error) {
	_, port, _ := strings.Cut(addr, ":")
	folder := filepath.Join(deploy, "gateways")
	g := &gateway{proxyPart: proxyPart{name: "portkey", url: "http://" + addr}}
	g.call = benchCall("/v1/chat/completions", benchToken, "x-portkey-provider: openai\r\nx-portkey-custom-host: "+provider+"/v1\r\n")
	return g, g.start(ctx, dir, []string{
		"node", "--require", filepath.Join(folder, "loopback.cjs"),
		filepath.Join(folder, "node_modules", "@portkey-ai", "gateway", "build", "start-server.js"), "--headless", "--port=" + port,
	}, "NODE_ENV=production", "TRUSTED_CUSTOM_HOSTS=127.0.0.1")
}

// startLiteLLM starts LiteLLM's proxy with the settings that its documentation has for
// production on one machine: a worker for each CPU, a master key, no debug logs. Its
// lists of models and prices are those of the package, not fetched.
func startLiteLLM(ctx context.Context, deploy, dir, addr, provider string) (*gateway, error) {
	host, port, _ := strings.Cut(addr, ":")
	key := "sk-" + rand.Text()
	g := &gateway{proxyPart: proxyPart{name: "litellm", url: "http://" + addr}}
	g.call = benchCall("/v1/chat/completions", key, "")
	env := []string{"LITELLM_MODE=PRODUCTION", "LITELLM_LOG=ERROR", "LITELLM_TELEMETRY=False", "LITELLM_MASTER_KEY=" + key, "PROVIDER_URL=" + provider + "/v1"}
	for _, list := range []string{"MODEL_COST_MAP", "ANTHROPIC_BETA_HEADERS", "BLOG_POSTS", "POLICY_TEMPLATES", "AUTOROUTER_PRESETS"} {
		env = append(env, "LITELLM_LOCAL_"+list+"=True")
	}
	return g, g.start(ctx, dir, []string{
		filepath.Join(deploy, "clients", "venv", "litellm", "bin", "litellm"), "--config", filepath.Join(deploy, "gateways", "litellm.yaml"),
		"--host", host, "--port", port, "--num_workers", strconv.Itoa(runtime.NumCPU()),
	}, env...)
}

// start starts the gateway and waits until it answers and is calm. On an error
// nothing is left of it. It ends with this process, however that ends.
func (g *gateway) start(ctx context.Context, dir string, args []string, env ...string) (err error) {
	defer func() {
		if err != nil {
			g.stop()
		}
	}()
	home := filepath.Join(dir, g.name)
	if err := os.Mkdir(home, 0o700); err != nil {
		return err
	}
	if g.log, err = os.Create(filepath.Join(home, "log")); err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, args[0], args[1:]...) //nolint:gosec // what make bench/gateways installed
	// The caller's settings are no part of the measurement.
	cmd.Env = append(env, "PATH="+os.Getenv("PATH"), "HOME="+home, "TMPDIR="+home, "LANG=C.UTF-8")
	cmd.Dir, cmd.Stdout, cmd.Stderr = home, g.log, g.log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // it has children of its own
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	if cmd.Err != nil {
		return fmt.Errorf("%s needs %s: %w", g.name, args[0], cmd.Err)
	}
	if err := embedded.StartChild(cmd, syscall.SIGTERM); err != nil {
		return fmt.Errorf("%s: %w", g.name, err)
	}
	g.cmd = cmd
	return g.await(ctx)
}

// await waits until the gateway answers as it must and then is calm, which is when
// its other workers have started, too.
func (g *gateway) await(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, gatewayStartTime)
	defer cancel()
	for pause := 100 * time.Millisecond; ; {
		before := treeCPU(g.cmd.Process.Pid)
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return g.lastWords("did not start in time")
		}
		if hasEnded(g.cmd.Process.Pid) {
			return g.lastWords("ended")
		}
		if used := treeCPU(g.cmd.Process.Pid) - before; pause == gatewayCalmTime && used <= gatewayCalmCPU {
			return nil
		}
		if err := g.checkAnswer(ctx); err == nil {
			pause = gatewayCalmTime
		}
	}
}

// stop kills all of the gateway's processes. It may be called twice.
func (g *gateway) stop() {
	if g.cmd != nil {
		// The group's number is that of its leader, and nobody else's until that is waited for.
		_ = syscall.Kill(-g.cmd.Process.Pid, syscall.SIGKILL)
		_ = g.cmd.Wait() // it was killed
		g.cmd = nil
	}
	if g.log != nil {
		g.log.Close()
	}
}

// hasEnded says whether a child that nobody has waited for has ended.
func hasEnded(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	return strings.HasPrefix(string(stat[strings.LastIndexByte(string(stat), ')')+1:]), " Z")
}

// lastWords is an error with the end of what the gateway wrote.
func (g *gateway) lastWords(what string) error {
	const most = 3000
	text, err := os.ReadFile(g.log.Name())
	err = cmp.Or(err, errors.New("the last it said:\n"+string(text[max(0, len(text)-most):])))
	return fmt.Errorf("%s %s: %w", g.name, what, err)
}
