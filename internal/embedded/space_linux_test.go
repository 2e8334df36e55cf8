package embedded

import (
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

func TestPostgresNeedsSpace(t *testing.T) {
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=64m,mode=755"); err != nil {
		// Only root can make a small file system; TestPostgresStartErrorsAreNamed
		// covers the server's own report for everyone.
		t.Logf("no small file system: %v", err)
		return
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	if _, err := StartPostgres(testContext(t), PostgresOptions{DataDir: filepath.Join(dir, "p")}); !errors.Is(err, ErrNoSpace) {
		t.Errorf("Postgres: %v, want ErrNoSpace", err)
	}
	if err := os.WriteFile(filepath.Join(dir, "fill"), make([]byte, 8*mib), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := StartKafka(t.Context(), KafkaOptions{DataDir: filepath.Join(dir, "k")}); !errors.Is(err, ErrNoSpace) {
		t.Errorf("Kafka: %v, want ErrNoSpace", err)
	}
}
