package chdb

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// ErrNewerData says that a newer engine has written the data directory. Parts
// may be in a format that this engine misreads, so it is not opened.
var ErrNewerData = errors.New("chdb: the data was written by a newer engine")

// checkVersion refuses data of a newer engine and else records that this one
// writes it from now on, before it does.
func checkVersion(file, version string) error {
	if file == "" {
		return nil
	}
	recorded, err := os.ReadFile(file)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("chdb: read the engine version of the data: %w", err)
	}
	last := strings.TrimSpace(string(recorded))
	if last != "" && compareVersions(last, version) > 0 {
		return fmt.Errorf("%w: %s is the version of the data, this engine is %s; use that version or another data directory", ErrNewerData, last, version)
	}
	if last == version {
		return nil
	}
	return writeDurably(file, version+"\n")
}

// compareVersions compares the leading dotted numbers of a and b, such as
// "26.7.3-stable.1" (26, 7, 3). Missing numbers count as zero.
func compareVersions(a, b string) int {
	x, y := versionNumbers(a), versionNumbers(b)
	for i := range max(len(x), len(y)) {
		var m, n int
		if i < len(x) {
			m = x[i]
		}
		if i < len(y) {
			n = y[i]
		}
		if m != n {
			return m - n
		}
	}
	return 0
}

func versionNumbers(v string) (numbers []int) {
	for _, part := range strings.Split(strings.TrimPrefix(v, "v"), ".") {
		digits := part
		if i := strings.IndexFunc(part, func(r rune) bool { return r < '0' || r > '9' }); i >= 0 {
			digits = part[:i]
		}
		n, err := strconv.Atoi(digits)
		if err != nil {
			return numbers
		}
		numbers = append(numbers, n)
		if digits != part {
			return numbers
		}
	}
	return numbers
}

// writeDurably replaces file at once; after a crash it is the old or the new one.
func writeDurably(file, text string) error {
	tmp, err := os.CreateTemp(filepath.Dir(file), ".version-*")
	if err != nil {
		return fmt.Errorf("chdb: record the engine version: %w", err)
	}
	defer os.Remove(tmp.Name())
	_, err = tmp.WriteString(text)
	err = errors.Join(err, tmp.Sync(), tmp.Close())
	if err == nil {
		err = os.Rename(tmp.Name(), file)
	}
	if err != nil {
		return fmt.Errorf("chdb: record the engine version: %w", err)
	}
	return nil
}
