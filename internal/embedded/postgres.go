package embedded

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"time"
)

const (
	// PostgresSuperuser is the role that owns an embedded cluster.
	PostgresSuperuser = "postgres"

	clusterDirName   = "pgdata"             // below DataDir
	socketDirName    = "run"                // below the cluster, which only the engine's user can enter
	passwordFileName = "superuser.password" // below DataDir, never readable by the engine's user
	socketPort       = 5432                 // only part of the socket's file name
)

// PostgresOptions say where and how an embedded Postgres runs.
type PostgresOptions struct {
	// DataDir is the private folder of this server; it is created when missing.
	// It holds the cluster, the superuser's password (mode 0600) and a lock.
	DataDir string
	// BinDir names the folder with postgres and initdb of a system Postgres
	// (15 or later) to use instead of the pinned package.
	BinDir string
	// EnginesDir is where the pinned package is searched; see FindEngines.
	EnginesDir string
	// TemplateDir, when set, keeps a cluster made by initdb once, which later
	// clusters are copied from. Copies share the template's password and system
	// identifier, so this is for tests and demos, not for data that lasts.
	TemplateDir string
	// Settings change the tuned server settings (postgresql.conf names). Those
	// that durability and privacy rest on cannot be changed.
	Settings map[string]string
	// OwnProcessGroup keeps a Ctrl-C at the terminal from reaching the server
	// before its clients have finished. Its death with the parent does not
	// depend on the process group.
	OwnProcessGroup bool
	// StartTimeout bounds one whole start, crash recovery included; 0 means
	// DefaultPostgresStartTimeout.
	StartTimeout time.Duration
	// Restart starts the server again, on the same socket, whenever it ends
	// without having been asked to.
	Restart bool
	// Logger gets the server's own log; nil discards it.
	Logger *slog.Logger
}

// DefaultPostgresStartTimeout is long because a start after a crash replays up
// to max_wal_size of log.
const DefaultPostgresStartTimeout = 5 * time.Minute

// Postgres is a running server, a child of this process.
type Postgres struct {
	cluster   cluster
	socketDir string
	restart   bool
	log       *engineLog
	done      chan struct{}
	err       error // how the last process ended; read after done is closed

	stopping context.Context // over once Stop was called
	stop     context.CancelFunc

	mu  sync.Mutex // guards run
	run *postgresRun

	release sync.Once
	lock    *dirLock
	linkDir string // private folder of the socket's short name, or ""
}

// StartPostgres starts the server on opt.DataDir and returns when it accepts
// connections. A new directory is initialised first. After a crash of an
// earlier server on the directory it waits for that one's remains to go.
//
// The server ends when this process does, or by [Postgres.Stop]; ctx only
// bounds the start. Errors: [ErrEngineMissing], [ErrWrongPlatform],
// [ErrChecksum], [ErrEngineTooOld], [ErrNewerDataDir], [ErrOlderDataDir],
// [ErrDataDirInUse], [ErrDataDirOwner], [ErrDataDirDamaged], [ErrNoSpace],
// [ErrSocketPath], [ErrUnsafeSetting], [ErrStart].
func StartPostgres(ctx context.Context, opt PostgresOptions) (_ *Postgres, err error) {
	opt, err = opt.withDefaults()
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, opt.StartTimeout)
	defer cancel()

	if err := os.MkdirAll(opt.DataDir, 0o700); err != nil {
		return nil, spaceError(fmt.Errorf("creating the Postgres directory: %w", err))
	}
	p := &Postgres{
		restart: opt.Restart,
		log:     newEngineLog(opt.Logger.With("engine", "postgres")),
		done:    make(chan struct{}),
	}
	p.stopping, p.stop = context.WithCancel(context.Background())
	defer func() {
		if err != nil {
			p.stop()
			p.releaseFiles()
		}
	}()
	if p.lock, err = lockDir(opt.DataDir); err != nil {
		return nil, err
	}
	if p.cluster, err = openCluster(ctx, opt); err != nil {
		return nil, err
	}
	if err := p.placeSocket(p.cluster.dir); err != nil {
		return nil, err
	}
	run, err := p.startServer(ctx)
	if err != nil {
		return nil, err
	}
	p.setRun(run)
	go p.supervise(run, opt.StartTimeout)
	return p, nil
}

func (opt PostgresOptions) withDefaults() (PostgresOptions, error) {
	if opt.DataDir == "" {
		return opt, fmt.Errorf("%w: no Postgres data directory given", ErrDataDirDamaged)
	}
	dir, err := filepath.Abs(opt.DataDir)
	if err != nil {
		return opt, err
	}
	opt.DataDir = dir
	if opt.Logger == nil {
		opt.Logger = slog.New(slog.DiscardHandler)
	}
	if opt.StartTimeout == 0 {
		opt.StartTimeout = DefaultPostgresStartTimeout
	}
	return opt, nil
}

// DSN returns the URL by which user reaches database. It contains user's
// password ([Postgres.Password]): never log it.
func (p *Postgres) DSN(user, database string) string {
	u := url.URL{Scheme: "postgres", User: url.UserPassword(user, p.Password(user)), Path: "/" + database}
	q := url.Values{}
	q.Set("host", p.socketDir)
	q.Set("port", strconv.Itoa(socketPort))
	q.Set("sslmode", "disable") // a unix socket; Postgres offers no TLS on one
	u.RawQuery = q.Encode()
	return u.String()
}

// Password returns the password that user has, or should be given by whoever
// creates the role. The superuser's was chosen at random when the cluster was
// made; every other role's is derived from it, so that roles need no password
// files of their own.
func (p *Postgres) Password(user string) string {
	if user == PostgresSuperuser {
		return p.cluster.password
	}
	mac := hmac.New(sha256.New, []byte(p.cluster.password))
	mac.Write([]byte("tallystick postgres role\x00" + user))
	return hex.EncodeToString(mac.Sum(nil))
}

// Major returns the server's major version, for example 18.
func (p *Postgres) Major() int { return p.cluster.binaries.major }

// PID returns the process id of the postmaster, which a restart changes.
func (p *Postgres) PID() int { return p.currentRun().pid() }

// Done is closed when the server has ended for good, wanted or not.
func (p *Postgres) Done() <-chan struct{} { return p.done }

// Wait returns when the server has ended for good: nil after an orderly stop,
// else how it ended with its last words.
func (p *Postgres) Wait() error {
	<-p.done
	return p.err
}

// Stop ends the server by a fast shutdown: open transactions are rolled back
// and a checkpoint is written, so the next start needs no recovery. When ctx
// ends first the server is stopped the hard way, which loses nothing that was
// committed but makes the next start recover. Safe to call twice, or after the
// server has ended by itself.
func (p *Postgres) Stop(ctx context.Context) error {
	defer p.releaseFiles()
	p.stop()
	p.currentRun().signal(syscall.SIGINT)
	select {
	case <-p.done:
		return p.err
	case <-ctx.Done():
	}
	p.currentRun().endHard()
	<-p.done
	return fmt.Errorf("stopping Postgres: %w", ctx.Err())
}

func (p *Postgres) currentRun() *postgresRun {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.run
}

func (p *Postgres) setRun(run *postgresRun) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.run = run
}

// releaseFiles drops the lock and the socket's short name.
func (p *Postgres) releaseFiles() {
	p.release.Do(func() {
		p.lock.unlock()
		if p.linkDir != "" {
			_ = os.RemoveAll(p.linkDir)
		}
	})
}

// maxSocketPath is the length of sockaddr_un.sun_path less the final NUL on the
// platform that has the shortest one.
const maxSocketPath = 103

// placeSocket decides by which name clients reach the socket. The server binds
// it by a relative name, so only the clients' name must be short; when the real
// one is not, a symbolic link in a private temporary folder stands in for it.
func (p *Postgres) placeSocket(clusterDir string) error {
	p.socketDir = filepath.Join(clusterDir, socketDirName)
	if len(socketFile(p.socketDir)) <= maxSocketPath {
		return nil
	}
	dir, err := os.MkdirTemp("", "tallystick-")
	if err != nil {
		return spaceError(fmt.Errorf("creating the folder of the Postgres socket: %w", err))
	}
	p.linkDir = dir
	short := filepath.Join(dir, "s")
	if len(socketFile(short)) > maxSocketPath {
		return fmt.Errorf("%w: %s is longer than %d bytes; set TMPDIR to a shorter path or choose a shorter data directory", ErrSocketPath, socketFile(short), maxSocketPath)
	}
	if err := os.Symlink(p.socketDir, short); err != nil {
		return err
	}
	p.socketDir = short
	return nil
}

func socketFile(dir string) string {
	return filepath.Join(dir, ".s.PGSQL."+strconv.Itoa(socketPort))
}
