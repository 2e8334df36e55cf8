package embedded

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// minFreeBytes is what a start asks for: a fresh cluster takes 40 MB and the
// first checkpoint's log as much again.
const minFreeBytes = 256 * mib

// cluster is a data directory that is ready to be served.
type cluster struct {
	dir      string // absolute path of the cluster, which user owns
	user     engineUser
	binaries postgresBinaries
	password string
	args     []string // settings for the server's command line
	ownGroup bool
}

// openCluster prepares opt.DataDir: checks an existing cluster or makes one.
// The caller holds the directory's lock.
func openCluster(ctx context.Context, opt PostgresOptions) (c cluster, err error) {
	c.dir = filepath.Join(opt.DataDir, clusterDirName)
	c.ownGroup = opt.OwnProcessGroup
	if c.user, err = pickEngineUser(c.dir); err != nil {
		return c, err
	}
	if c.binaries, err = resolvePostgres(ctx, opt, c.user); err != nil {
		return c, err
	}
	free, err := freeBytes(opt.DataDir)
	if err != nil {
		return c, fmt.Errorf("asking for the free space of %s: %w", opt.DataDir, err)
	}
	if free < minFreeBytes {
		return c, fmt.Errorf("%w: %d MB free in %s, Postgres needs %d MB to start; free some space or choose another data directory",
			ErrNoSpace, free/mib, opt.DataDir, minFreeBytes/mib)
	}
	if c.args, err = settingArgs(tunedSettings(machineMemoryBytes(), free), opt.Settings); err != nil {
		return c, err
	}
	if _, err := os.Lstat(c.dir); errors.Is(err, fs.ErrNotExist) {
		if err := c.create(ctx, opt); err != nil {
			return c, err
		}
	} else if err != nil {
		return c, err
	}
	return c, c.check(opt.DataDir)
}

// check refuses a directory that this server must not touch, and reads the
// password.
func (c *cluster) check(dataDir string) error {
	data, err := os.ReadFile(filepath.Join(c.dir, "PG_VERSION"))
	if errors.Is(err, fs.ErrPermission) {
		return fmt.Errorf("%w: %w", ErrDataDirOwner, err)
	}
	if err != nil {
		return fmt.Errorf("%w: %s is not a Postgres cluster (%w); move it away or choose another data directory", ErrDataDirDamaged, c.dir, err)
	}
	if err := c.checkVersion(strings.TrimSpace(string(data))); err != nil {
		return err
	}
	password, err := os.ReadFile(filepath.Join(dataDir, passwordFileName))
	if err != nil {
		return fmt.Errorf("%w: the superuser's password is not readable (%w)", ErrDataDirDamaged, err)
	}
	c.password = strings.TrimSpace(string(password))
	if err := c.adopt(); err != nil {
		return err
	}
	return c.makeSocketDir()
}

func (c *cluster) checkVersion(version string) error {
	major, err := strconv.Atoi(version)
	switch {
	case err != nil:
		return fmt.Errorf("%w: PG_VERSION of %s is %q", ErrDataDirDamaged, c.dir, version)
	case major > c.binaries.major:
		return fmt.Errorf("%w: %s was written by Postgres %d and this is Postgres %d; use that version or another data directory",
			ErrNewerDataDir, c.dir, major, c.binaries.major)
	case major < c.binaries.major:
		return fmt.Errorf("%w: %s was written by Postgres %d and this is Postgres %d; name the older server's folder in the configuration, or dump, move the directory away and restore",
			ErrOlderDataDir, c.dir, major, c.binaries.major)
	}
	return nil
}

// adopt gives a cluster that root owns (a restored copy, for example) to the
// user that will serve it.
func (c *cluster) adopt() error {
	st, err := statOf(c.dir)
	if err != nil || !c.user.switched || st.Uid == c.user.uid {
		return err
	}
	return c.user.ownTree(c.dir)
}

func (c *cluster) makeSocketDir() error {
	run := filepath.Join(c.dir, socketDirName)
	if err := os.Mkdir(run, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return spaceError(err)
	}
	return c.user.own(run)
}

// create makes the cluster beside its final place and renames it, so that an
// interrupted initialisation leaves nothing that looks like a cluster.
func (c *cluster) create(ctx context.Context, opt PostgresOptions) error {
	building := c.dir + ".new"
	if err := os.RemoveAll(building); err != nil {
		return err
	}
	if err := os.Mkdir(building, 0o700); err != nil {
		return spaceError(err)
	}
	if err := c.user.own(building); err != nil {
		return err
	}
	fill := c.initialise
	if opt.TemplateDir != "" {
		fill = c.copyTemplate
	}
	password, err := fill(ctx, building, opt)
	if err != nil {
		return err
	}
	// The password is durable before the cluster that needs it appears.
	if err := writeFileAtomic(filepath.Join(opt.DataDir, passwordFileName), []byte(password+"\n"), 0o600); err != nil {
		return spaceError(err)
	}
	if err := os.Rename(building, c.dir); err != nil {
		return err
	}
	return syncDir(opt.DataDir)
}

// initialise runs initdb in the empty folder dir with a fresh password.
func (c *cluster) initialise(ctx context.Context, dir string, _ PostgresOptions) (string, error) {
	password := rand.Text()
	if err := c.runInitdb(ctx, dir, password); err != nil {
		return "", err
	}
	return password, nil
}

// initdbArgs are the choices that a cluster keeps for its lifetime. The C
// locale compares bytes, as every other part of Tallystick does, and cannot
// change under an index when the system's C library is updated.
var initdbArgs = []string{
	"--username=" + PostgresSuperuser,
	"--auth=scram-sha-256",
	"--encoding=UTF8",
	"--locale=C",
	"--data-checksums",
	"--no-instructions",
}

func (c *cluster) runInitdb(ctx context.Context, dir, password string) error {
	cmd, closeDir, err := c.command(dir, "initdb", initdbArgs...)
	if err != nil {
		return err
	}
	defer closeDir()
	stdin, err := c.passwordPipe(password)
	if err != nil {
		return err
	}
	defer stdin.Close()
	cmd.Args = append(cmd.Args, "--pwfile=/dev/stdin")
	cmd.Stdin = stdin
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := StartChild(cmd, syscall.SIGKILL); err != nil {
		return fmt.Errorf("%w: initdb: %w", ErrStart, err)
	}
	stopKill := context.AfterFunc(ctx, func() { _ = cmd.Process.Kill() })
	defer stopKill()
	if err := cmd.Wait(); err != nil {
		text := strings.TrimSpace(out.String())
		if strings.Contains(text, "No space left on device") {
			return fmt.Errorf("%w: initdb in %s; free some space or choose another data directory", ErrNoSpace, dir)
		}
		return fmt.Errorf("%w: initdb: %w: %s", ErrStart, errors.Join(err, ctx.Err()), lastLines(text, 5))
	}
	return nil
}

// passwordPipe returns a pipe that holds the password. initdb opens its
// password file by name as another user, so the pipe is given to that user; no
// file ever holds the password where others could read it.
func (c *cluster) passwordPipe(password string) (*os.File, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer w.Close()
	if c.user.switched {
		if err := r.Chown(int(c.user.uid), int(c.user.gid)); err != nil {
			r.Close()
			return nil, err
		}
	}
	if _, err := w.WriteString(password + "\n"); err != nil { // far below a pipe's capacity
		r.Close()
		return nil, err
	}
	return r, nil
}

// copyTemplate copies the cluster of opt.TemplateDir, made on first use, into
// the empty folder dir.
func (c *cluster) copyTemplate(ctx context.Context, dir string, opt PostgresOptions) (string, error) {
	template, err := c.template(ctx, opt.TemplateDir)
	if err != nil {
		return "", err
	}
	if err := copyTree(dir, filepath.Join(template, clusterDirName)); err != nil {
		return "", spaceError(fmt.Errorf("copying the Postgres template: %w", err))
	}
	if err := c.user.ownTree(dir); err != nil {
		return "", err
	}
	password, err := os.ReadFile(filepath.Join(template, passwordFileName))
	if err != nil {
		return "", fmt.Errorf("%w: Postgres template: %w", ErrDataDirDamaged, err)
	}
	return strings.TrimSpace(string(password)), nil
}

// template returns the folder of the template for these binaries and initdb
// arguments, made when missing. Processes that want it at once wait for one.
func (c *cluster) template(ctx context.Context, templateDir string) (string, error) {
	key := sha256.Sum256([]byte(c.binaries.binDir + strconv.Itoa(c.binaries.major) + strings.Join(initdbArgs, " ") + strconv.Itoa(int(c.user.uid))))
	dir := filepath.Join(templateDir, "postgres-"+hex.EncodeToString(key[:8]))
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", spaceError(err)
	}
	for {
		lock, err := lockDir(dir)
		if err == nil {
			defer lock.unlock()
			break
		}
		if !errors.Is(err, ErrDataDirInUse) {
			return "", err
		}
		if err := pause(ctx, retryInterval); err != nil {
			return "", fmt.Errorf("%w: another process is making the Postgres template: %w", ErrStart, err)
		}
	}
	made := *c
	made.dir = filepath.Join(dir, clusterDirName)
	if _, err := os.Lstat(made.dir); errors.Is(err, fs.ErrNotExist) {
		err = made.create(ctx, PostgresOptions{DataDir: dir})
		return dir, err
	}
	return dir, nil
}

// command builds a command that runs a Postgres program as the cluster's user on
// the data directory dir.
//
// The parents of a data directory often shut other users out (a home folder,
// a temporary folder of mode 0700). On Linux that does not matter: the child
// inherits dir as an open descriptor and reaches it through that. Its working
// directory would do as well, but programs before Postgres 16 leave it for a
// moment and cannot come back by its name.
func (c *cluster) command(dir, program string, args ...string) (*exec.Cmd, func(), error) {
	cmd := exec.Command(c.binaries.path(program), args...)
	cmd.Env = []string{"LC_ALL=C", "TZ=UTC", "PATH=/usr/bin:/bin"}
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: c.user.credential(), Setpgid: c.ownGroup}
	if !reachByDescriptor {
		cmd.Args = append(cmd.Args, "-D", dir)
		return cmd, func() {}, nil
	}
	f, err := os.Open(dir)
	if err != nil {
		return nil, nil, err
	}
	cmd.ExtraFiles = []*os.File{f} // descriptor 3 of the child
	cmd.Args = append(cmd.Args, "-D", "/proc/self/fd/3")
	return cmd, func() { f.Close() }, nil
}

// pause waits for d or the end of ctx.
func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func lastLines(text string, n int) string {
	lines := strings.Split(text, "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "; ")
}
