package embedded

import (
	"context"
	"errors"
	"strings"
	"testing"
)

func TestTunedSettingsScaleWithTheMachine(t *testing.T) {
	for _, c := range []struct {
		memory, disk         uint64
		buffers, wal, walBuf string
	}{
		{256 * mib, 1 * gib, "64MB", "256MB", "16MB"},
		{2 * gib, 40 * gib, "256MB", "5120MB", "64MB"},
		{24 * gib, 80 * gib, "1024MB", "10240MB", "64MB"},
		{512 * gib, 4096 * gib, "1024MB", "16384MB", "64MB"},
	} {
		s := tunedSettings(c.memory, c.disk)
		if s["shared_buffers"] != c.buffers || s["max_wal_size"] != c.wal || s["wal_buffers"] != c.walBuf {
			t.Errorf("memory %d, disk %d: shared_buffers %s, max_wal_size %s, wal_buffers %s; want %s, %s, %s",
				c.memory, c.disk, s["shared_buffers"], s["max_wal_size"], s["wal_buffers"], c.buffers, c.wal, c.walBuf)
		}
	}
}

func TestSettingsThatLoseDataOrListenAreRefused(t *testing.T) {
	for _, bad := range []map[string]string{
		{"fsync": "off"},
		{"synchronous_commit": "off"},
		{"full_page_writes": "off"},
		{"listen_addresses": "*"},
		{"log_statement": "all"},
		{"FSYNC": "off"},
		{"x=1 -c fsync": "off"},
	} {
		if _, err := settingArgs(tunedSettings(gib, gib), bad); !errors.Is(err, ErrUnsafeSetting) {
			t.Errorf("%v: %v, want ErrUnsafeSetting", bad, err)
		}
	}
	args, err := settingArgs(map[string]string{"jit": "off"}, map[string]string{"jit": "on", "fsync": "on"})
	if err != nil || !strings.Contains(strings.Join(args, " "), "-c jit=on") {
		t.Errorf("lawful settings: %v, %v", args, err)
	}
}

func TestAssertSafePostgres(t *testing.T) {
	values := map[string]string{"fsync": "on", "synchronous_commit": "on", "full_page_writes": "on"}
	show := func(_ context.Context, name string) (string, error) { return values[name], nil }
	if err := AssertSafePostgres(t.Context(), show); err != nil {
		t.Errorf("a safe server: %v", err)
	}
	for name := range safeSettings {
		values[name] = "off"
		if err := AssertSafePostgres(t.Context(), show); !errors.Is(err, ErrUnsafeSetting) || !strings.Contains(err.Error(), name) {
			t.Errorf("%s=off: %v, want ErrUnsafeSetting that names it", name, err)
		}
		values[name] = "on"
	}
	broken := errors.New("connection lost")
	if err := AssertSafePostgres(t.Context(), func(context.Context, string) (string, error) { return "", broken }); !errors.Is(err, broken) {
		t.Errorf("err = %v, want show's error", err)
	}
}

func TestParseMemTotal(t *testing.T) {
	if got := parseMemTotal("MemTotal:       2048 kB\nMemFree: 1 kB\n", 7); got != 2*mib {
		t.Errorf("got %d", got)
	}
	if got := parseMemTotal("nonsense", 7); got != 7 {
		t.Errorf("got %d for unknown", got)
	}
}
