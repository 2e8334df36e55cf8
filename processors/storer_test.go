package processors

import (
	"testing"
	"time"
)

// A pause says nothing about the load: what counts is how fast entries come.
func TestInterval(t *testing.T) {
	const usual, long = 400 * time.Millisecond, 800 * time.Millisecond
	st := &storer{r: &Runner{opts: Options{FlushInterval: usual, FlushRows: 50_000}}}
	for _, c := range []struct {
		rows int
		in   time.Duration
		want time.Duration
	}{
		{0, 0, long}, // woken twice in no time: rather late than often
		{0, usual, usual},
		{8_000, usual, usual},
		{16_000, long, usual},
		{24_000, 1200 * time.Millisecond, usual},
		{12_000, usual, usual},
		{12_500, usual, long},
		{34_000, long, long},
		{50_000, 300 * time.Millisecond, long},
	} {
		if got := st.interval(c.rows, c.in); got != c.want {
			t.Errorf("%d entries in %v: %v, want %v", c.rows, c.in, got, c.want)
		}
	}
}
