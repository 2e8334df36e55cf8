package embedded

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"github.com/twmb/franz-go/pkg/kfake"
)

const (
	// DefaultKafkaPartitions is the partition count of a topic whose creator
	// names none.
	DefaultKafkaPartitions = 12

	kafkaLogDirName   = "log"      // below DataDir
	kafkaPortFile     = "port"     // below DataDir
	kafkaPasswordFile = "password" // below DataDir, mode 0600
	kafkaMechanism    = "SCRAM-SHA-256"
	kafkaUser         = "tallystick"
	kafkaClusterID    = "tallystick-embedded"
	minKafkaFreeByte  = 64 * mib
)

// KafkaOptions say where the embedded broker keeps its records.
type KafkaOptions struct {
	// DataDir is the private folder of this broker; it is created when missing.
	DataDir string
	// Port of the loopback listener. 0 takes the port of the last run on this
	// directory when it is free, else any free one.
	Port int
	// Partitions of a topic created without a count; 0 means
	// DefaultKafkaPartitions.
	Partitions int
	// Authenticate asks every client for the user and password of
	// [Kafka.Credentials], so that other users of the machine can neither read
	// nor write events. Without it anyone who can reach the loopback interface
	// can.
	Authenticate bool
	// Logger gets the broker's warnings and errors; nil discards them.
	Logger *slog.Logger
}

// KafkaCredentials authenticate a client. The zero value means that the broker
// asks for none.
type KafkaCredentials struct {
	Mechanism, User, Password string
}

// Kafka is a running broker in this process.
type Kafka struct {
	dir         string
	cluster     *kfake.Cluster
	brokers     []string
	credentials KafkaCredentials
	lock        *dirLock
	close       sync.Once
}

// StartKafka starts the broker. An acknowledged record is on disk (fsync)
// before its acknowledgement, and an earlier run's topics, records and group
// offsets are there again, however that run ended.
//
// ctx is looked at once, before anything is touched; loading the log is not
// interruptible.
//
// Two properties a caller must know. Only topics that set a retention have one:
// a topic without grows for ever. And the idempotence of a producer that
// outlives the broker is not kept across a kill of the broker: such a producer
// may write a batch twice.
//
// Errors: [ErrPortTaken], [ErrDataDirInUse], [ErrNewerDataDir],
// [ErrDataDirDamaged], [ErrNoSpace].
func StartKafka(ctx context.Context, opt KafkaOptions) (_ *Kafka, err error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if opt.DataDir == "" {
		return nil, fmt.Errorf("%w: no Kafka data directory given", ErrDataDirDamaged)
	}
	if opt.Partitions == 0 {
		opt.Partitions = DefaultKafkaPartitions
	}
	if opt.Logger == nil {
		opt.Logger = slog.New(slog.DiscardHandler)
	}
	logDir := filepath.Join(opt.DataDir, kafkaLogDirName)
	if err := os.MkdirAll(logDir, 0o700); err != nil {
		return nil, spaceError(fmt.Errorf("creating the Kafka directory: %w", err))
	}
	k := &Kafka{dir: opt.DataDir}
	if k.lock, err = lockDir(opt.DataDir); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			k.lock.unlock()
		}
	}()
	if free, err := freeBytes(logDir); err == nil && free < minKafkaFreeByte {
		return nil, fmt.Errorf("%w: %d MB free in %s; free some space or choose another data directory", ErrNoSpace, free/mib, logDir)
	}
	if err := k.start(opt, logDir); err != nil {
		return nil, err
	}
	if err := rememberPort(opt.DataDir, k.brokers[0]); err != nil {
		k.cluster.Close()
		return nil, spaceError(err)
	}
	return k, nil
}

// start opens the listener first, so that a taken port is told apart from every
// other failure, and hands it to kfake.
func (k *Kafka) start(opt KafkaOptions, logDir string) error {
	listener, err := kafkaListener(opt)
	if err != nil {
		return err
	}
	k.brokers = []string{listener.Addr().String()}
	opts := []kfake.Opt{
		kfake.NumBrokers(1),
		kfake.ClusterID(kafkaClusterID),
		kfake.ListenFn(func(string, string) (net.Listener, error) { return listener, nil }),
		kfake.DefaultNumPartitions(opt.Partitions),
		kfake.DataDir(logDir),
		kfake.SyncWrites(),
		kfake.WithLogger(kafkaLogger{opt.Logger.With("engine", "kafka")}),
	}
	if opt.Authenticate {
		if err := k.loadCredentials(opt.DataDir); err != nil {
			listener.Close()
			return err
		}
		opts = append(opts, kfake.EnableSASL(), kfake.Superuser(k.credentials.Mechanism, k.credentials.User, k.credentials.Password))
	}
	k.cluster, err = kfake.NewCluster(opts...)
	if err == nil {
		return nil
	}
	listener.Close() // kfake closes it too; once more is harmless
	if strings.Contains(err.Error(), "is newer than supported") {
		return fmt.Errorf("%w: Kafka log in %s: %w", ErrNewerDataDir, logDir, err)
	}
	return fmt.Errorf("%w: Kafka log in %s: %w; move it away to start with an empty one", ErrDataDirDamaged, logDir, spaceError(err))
}

// loadCredentials reads the password of an earlier run, which the broker's own
// files hold too, or makes one.
func (k *Kafka) loadCredentials(dataDir string) error {
	path := filepath.Join(dataDir, kafkaPasswordFile)
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		data = []byte(rand.Text() + "\n")
		err = spaceError(writeFileAtomic(path, data, 0o600))
	}
	if err != nil {
		return fmt.Errorf("the Kafka password: %w", err)
	}
	k.credentials = KafkaCredentials{Mechanism: kafkaMechanism, User: kafkaUser, Password: strings.TrimSpace(string(data))}
	return nil
}

// Credentials returns what a client must authenticate with.
func (k *Kafka) Credentials() KafkaCredentials { return k.credentials }

// kafkaListener listens on the loopback interface only.
func kafkaListener(opt KafkaOptions) (net.Listener, error) {
	if opt.Port != 0 {
		l, err := listenLoopback(opt.Port)
		if errors.Is(err, syscall.EADDRINUSE) {
			return nil, fmt.Errorf("%w: %d, wanted for the embedded Kafka; end the process that listens there, or configure another port or 0 for any free one", ErrPortTaken, opt.Port)
		}
		return l, err
	}
	if last := rememberedPort(opt.DataDir); last != 0 {
		if l, err := listenLoopback(last); err == nil {
			return l, nil
		}
	}
	return listenLoopback(0)
}

func listenLoopback(port int) (net.Listener, error) {
	return net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
}

// rememberedPort returns the port of the last run, or 0.
func rememberedPort(dataDir string) int {
	data, err := os.ReadFile(filepath.Join(dataDir, kafkaPortFile))
	if err != nil {
		return 0
	}
	port, err := strconv.Atoi(strings.TrimSpace(string(data)))
	if err != nil || port < 1 || port > 65535 {
		return 0
	}
	return port
}

func rememberPort(dataDir, addr string) error {
	_, port, err := net.SplitHostPort(addr)
	if err != nil {
		return err
	}
	return writeFileAtomic(filepath.Join(dataDir, kafkaPortFile), []byte(port+"\n"), 0o600)
}

// Brokers returns the seed brokers, host:port.
func (k *Kafka) Brokers() []string { return append([]string(nil), k.brokers...) }

// Close stops the broker after writing its state, so that the next start loads
// quickly. A second call does nothing.
func (k *Kafka) Close() {
	k.close.Do(func() {
		k.cluster.Close()
		k.lock.unlock()
	})
}

// kafkaLogger passes kfake's log on. Its informational messages tell of every
// request, so they are dropped.
type kafkaLogger struct{ logger *slog.Logger }

// Logf implements kfake.Logger.
func (l kafkaLogger) Logf(level kfake.LogLevel, format string, args ...any) {
	switch level {
	case kfake.LogLevelError:
		l.logger.Error("engine message", "line", fmt.Sprintf(format, args...))
	case kfake.LogLevelWarn:
		l.logger.Warn("engine message", "line", fmt.Sprintf(format, args...))
	}
}

// minLogRoom is the space below which the broker is to take nothing more: a
// write that fails half way may leave a producer's sequence ahead of the log.
const minLogRoom = 16 << 20

// Room reports whether the broker's file system has space for more records. It
// asks the system; callers on a hot path ask now and then.
func (k *Kafka) Room() bool {
	free, err := freeBytes(k.dir)
	return err != nil || free >= minLogRoom
}
