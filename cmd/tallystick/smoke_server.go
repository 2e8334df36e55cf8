package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/tallystick/tallystick/internal/authn"
	"github.com/tallystick/tallystick/internal/client"
	"github.com/tallystick/tallystick/internal/config"
	"github.com/tallystick/tallystick/internal/embedded"
)

// smokeServer is the server under test: this program again, in a process group
// of its own, with its data and settings below one directory.
type smokeServer struct {
	dir   string
	addr  string
	kafka string // how Kafka runs, for the report
	args  []string
	env   []string
	log   *os.File

	cmd  *exec.Cmd
	done chan struct{} // closed when the process is gone
	err  error         // how it ended; read after done is closed
	sure bool          // it was told to end
}

// newSmokeServer chooses the ports, which stay the same over restarts: who
// sends to the server must not have to look for it.
func newSmokeServer(dir string) (*smokeServer, error) {
	addrs, err := freeAddrs(2)
	if err != nil {
		return nil, err
	}
	settings := filepath.Join(dir, "config.yaml")
	if err := os.WriteFile(settings, []byte("target: all\n"), 0o600); err != nil {
		return nil, fmt.Errorf("smoke: %w", err)
	}
	s := &smokeServer{dir: dir, addr: addrs[0], kafka: "embedded"}
	s.args = []string{"up", "--config", settings, "--data-dir", s.dataDir(), "--http-listen", addrs[0], "--grpc-listen", addrs[1]}
	s.env = s.environment(os.Environ())
	if s.log, err = os.Create(filepath.Join(dir, "server.log")); err != nil {
		return nil, fmt.Errorf("smoke: %w", err)
	}
	return s, nil
}

func (s *smokeServer) dataDir() string { return filepath.Join(s.dir, "data") }
func (s *smokeServer) url() string     { return "http://" + s.addr }

// freeAddrs finds loopback addresses that nobody listens on.
func freeAddrs(n int) ([]string, error) {
	addrs := make([]string, n)
	for i := range addrs {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, fmt.Errorf("smoke: %w", err)
		}
		defer l.Close() //nolint:errcheck // all stay open until all are found, so that they differ
		addrs[i] = l.Addr().String()
	}
	return addrs, nil
}

// environment leaves out every setting of the caller, whose servers are no
// place for a test, but where the engines are; brokers for tests are used. What
// has no flag listens on any free port.
func (s *smokeServer) environment(environ []string) []string {
	get := func(name string) string {
		for _, kv := range slices.Backward(environ) {
			if v, ok := strings.CutPrefix(kv, config.EnvPrefix+name+"="); ok {
				return v
			}
		}
		return ""
	}
	env := slices.DeleteFunc(slices.Clone(environ), func(kv string) bool {
		return strings.HasPrefix(kv, config.EnvPrefix) && !strings.HasPrefix(kv, config.EnvPrefix+"ENGINES_DIR=")
	})
	env = append(env, config.FreePorts()...)
	brokers := get("TEST_KAFKA_BROKERS")
	if brokers == "" {
		return env
	}
	n := 1 + strings.Count(brokers, ",")
	s.kafka = strconv.Itoa(n) + " brokers"
	for name, value := range map[string]string{
		"BROKERS": brokers, "TOPIC_PREFIX": filepath.Base(s.dir) + "-", "REPLICATION": strconv.Itoa(min(n, 3)),
		"SASL_USERNAME": get("TEST_KAFKA_SASL_USER"), "SASL_PASSWORD": get("TEST_KAFKA_SASL_PASSWORD"),
		"SASL_MECHANISM": get("TEST_KAFKA_SASL_MECHANISM"),
	} {
		if value != "" {
			env = append(env, config.EnvPrefix+"KAFKA_"+name+"="+value)
		}
	}
	return env
}

// token is the admin token that the server made.
func (s *smokeServer) token() (string, error) {
	return authn.LoadToken(filepath.Join(s.dataDir(), adminTokenFile))
}

// start starts the process and waits until it is ready. It returns how long
// that took.
func (s *smokeServer) start(ctx context.Context) (time.Duration, error) {
	exe, err := os.Executable()
	if err != nil {
		return 0, fmt.Errorf("smoke: %w", err)
	}
	s.cmd = exec.Command(exe, s.args...) //nolint:gosec // this program
	s.cmd.Env, s.cmd.Stdout, s.cmd.Stderr = s.env, s.log, s.log
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	began := time.Now()
	// Should this process be killed, the server must not stay behind.
	if err := embedded.StartChild(s.cmd, syscall.SIGKILL); err != nil {
		s.cmd = nil
		return 0, fmt.Errorf("smoke: starting the server: %w", err)
	}
	s.done, s.sure = make(chan struct{}), false
	go func(cmd *exec.Cmd, done chan struct{}) {
		s.err = cmd.Wait()
		close(done)
	}(s.cmd, s.done)
	if err := s.waitReady(ctx); err != nil {
		return 0, err
	}
	return time.Since(began), nil
}

func (s *smokeServer) waitReady(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, smokeStartTime)
	defer cancel()
	api := client.New(s.url(), "")
	defer api.Close()
	for {
		_, err := api.Ready(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-s.done:
			return s.lastWords("the server did not start")
		case <-ctx.Done():
			return s.lastWords(fmt.Sprintf("the server is not ready: %v", err))
		}
	}
}

// died is closed when the process is gone. After kill or stop it never is.
func (s *smokeServer) died() <-chan struct{} {
	if s.sure {
		return nil
	}
	return s.done
}

// kill ends the process group and everything that came of it with SIGKILL, and
// returns how many processes that were. Without a process it does nothing.
func (s *smokeServer) kill() (int, error) {
	if s.cmd == nil {
		return 0, nil
	}
	select {
	case <-s.done:
		s.cmd = nil
		return 0, nil
	default:
	}
	s.sure = true
	pid := s.cmd.Process.Pid
	// Postgres leads a group of its own and its backends lead theirs: they are
	// killed by number, or they would end in their own, orderly way.
	others := descendants(pid)
	err := syscall.Kill(-pid, syscall.SIGKILL)
	for _, p := range others {
		if kerr := syscall.Kill(p, syscall.SIGKILL); kerr != nil && !errors.Is(kerr, syscall.ESRCH) {
			err = errors.Join(err, kerr)
		}
	}
	<-s.done
	s.cmd = nil
	if err != nil {
		return 0, fmt.Errorf("smoke: kill: %w", err)
	}
	return 1 + len(others), nil
}

// stop asks the server to end and waits for it.
func (s *smokeServer) stop(limit time.Duration) (time.Duration, error) {
	began := time.Now()
	s.sure = true
	if err := s.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		return 0, fmt.Errorf("smoke: stopping the server: %w", err)
	}
	select {
	case <-s.done:
	case <-time.After(limit):
		return 0, s.lastWords(fmt.Sprintf("the server did not stop within %s of SIGTERM", limit))
	}
	if s.err != nil {
		return 0, s.lastWords(fmt.Sprintf("the server ended with %v", s.err))
	}
	s.cmd = nil
	return time.Since(began), nil
}

// close closes the log.
func (s *smokeServer) close() { _ = s.log.Close() }

// lastWords is an error with the end of the server's log.
func (s *smokeServer) lastWords(what string) error {
	const most = 2000
	text, err := os.ReadFile(s.log.Name())
	if err != nil {
		text = []byte(err.Error())
	}
	if len(text) > most {
		text = text[len(text)-most:]
	}
	return fmt.Errorf("smoke: %s; the last it said:\n%s", what, text)
}

// descendants are the processes below a process. Every thread lists the ones
// that it started. Elsewhere than on Linux there are none to be seen.
func descendants(pid int) []int {
	var all []int
	for _, c := range childrenOf(pid) {
		all = append(append(all, c), descendants(c)...)
	}
	return all
}
