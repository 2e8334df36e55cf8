package isolation

import (
	"fmt"
	"os"
	"sync"
	"testing"

	"github.com/tallystick/tallystick/internal/testenv"
)

// full is set by `make isolation`: then everything runs, PgBouncer and the whole
// program too, and the counts are printed. Plain `go test` runs what needs
// nothing but the embedded engines.
var full = os.Getenv("TALLYSTICK_ISOLATION") != ""

// counts is what the tests of this process counted. It is process-wide because
// the last line is printed after all of them.
var counts struct {
	sync.Mutex
	tables, mutants, caught, attempts, controls, leaks, pooled, wrong, injections, switched int
}

// count adds to the counts.
func count(add func()) {
	counts.Lock()
	defer counts.Unlock()
	add()
}

func TestMain(m *testing.M) {
	testenv.MainThen(m, func(code int) int {
		if !full {
			return code
		}
		c := &counts
		if code == 0 && (c.tables == 0 || c.mutants != c.caught || c.attempts < 5000 || c.controls != c.attempts || c.leaks > 0 ||
			c.pooled < 8000 && !withoutPooler || c.wrong > 0 || c.injections < 2000 || c.switched > 0) {
			code = 1
		}
		fmt.Printf("isolation: tables=%d mutants=%d/%d attempts=%d controls_ok=%d leaks=%d pooled=%d wrong=%d injections=%d switched=%d\n",
			c.tables, c.caught, c.mutants, c.attempts, c.controls, c.leaks, c.pooled, c.wrong, c.injections, c.switched)
		return code
	})
}

// withoutPooler lets the suite pass where PgBouncer cannot be had.
var withoutPooler = os.Getenv("TALLYSTICK_ISOLATION_WITHOUT_PGBOUNCER") != ""
