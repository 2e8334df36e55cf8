package embedded

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"
)

// The test binary starts itself again to play a parent that gets killed, or to
// run as another user. roleEnv says which part it plays; each role is a
// function that talks over standard input and output.
const (
	roleEnv = "TALLYSTICK_EMBEDDED_TEST_ROLE"
	dirEnv  = "TALLYSTICK_EMBEDDED_TEST_DIR"
)

var roles = map[string]func(dir string) error{
	"postgres": servePostgres,
	"kafka":    serveKafka,
}

func TestMain(m *testing.M) {
	MaybeChild()
	if role := os.Getenv(roleEnv); role != "" {
		if err := roles[role](os.Getenv(dirEnv)); err != nil {
			fmt.Println("error:", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// player is another process of this test binary.
type player struct {
	cmd *exec.Cmd
	out *bufio.Reader
}

// play starts role on dir in a process group of its own and returns it with
// its first line of output.
func play(t *testing.T, role, dir string) (*player, string) {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), roleEnv+"="+role, dirEnv+"="+dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	stdin, err := cmd.StdinPipe() // its end tells the role to end
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p := &player{cmd, bufio.NewReader(stdout)}
	t.Cleanup(func() {
		stdin.Close()
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	return p, p.line(t)
}

func (p *player) line(t *testing.T) string {
	t.Helper()
	line, err := p.out.ReadString('\n')
	if err != nil || strings.HasPrefix(line, "error:") {
		t.Fatalf("the other process said %q (%v)", line, err)
	}
	return strings.TrimSpace(line)
}

// kill ends the process as a power cut would.
func (p *player) kill(t *testing.T) {
	t.Helper()
	if err := p.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = p.cmd.Wait() // "signal: killed"
}

func waitForEOF() { _, _ = io.Copy(io.Discard, os.Stdin) }

// awaitGone waits until no process has pid, and returns how long that took.
func awaitGone(t *testing.T, pid int) time.Duration {
	t.Helper()
	begin := time.Now()
	for time.Since(begin) < 10*time.Second {
		if gone(pid) {
			return time.Since(begin)
		}
		time.Sleep(time.Millisecond)
	}
	t.Fatalf("process %d is still there after %s", pid, time.Since(begin))
	return 0
}

func gone(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err != nil || isZombie(stat)
}

func testContext(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	t.Cleanup(cancel)
	return ctx
}
