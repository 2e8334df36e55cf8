package pricing

import (
	"bytes"
	"cmp"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/tallystick/tallystick/internal/money"
)

// GPUPrice is what an instance with GPUs costs by the hour, as a list says it; GPURowsOf makes
// rows of a book of them.
type GPUPrice struct {
	Cloud, Region, Instance string
	// GPU is the accelerator's name in the list, GPUs how many the instance has, a decimal as
	// it stands there ("0.3333"); 0 is a fraction that the list does not say.
	GPU, GPUs string
	// Kind is on_demand or spot, as the list names it.
	Kind string
	// PerHour is for the whole instance, in 1e-12 of Currency (ISO 4217); no currency is
	// converted.
	PerHour  money.Pico
	Currency string
	// AsOf is when the list was made; zero where it does not say.
	AsOf time.Time
}

// gpuColumns are the columns that a list of GPU prices must have, in the order of
// GPUPrice's fields; others are left aside.
var gpuColumns = []string{"cloud", "region", "instance_type", "gpu_name", "gpu_count", "price_kind", "usd_per_hour", "currency", "generated_at"}

// ReadGPUPrices reads hourly prices of GPU instances from CSV with gpuColumns, plain or
// compressed with zstd, in order of cloud, region, instance and kind. The column
// usd_per_hour is in the currency that the line names. Errors: ErrGPUPrices with the line.
func ReadGPUPrices(r io.Reader) ([]GPUPrice, error) {
	data, err := readSmall(r)
	if err != nil {
		return nil, err
	}
	lines := csv.NewReader(bytes.NewReader(data))
	header, err := lines.Read()
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrGPUPrices, err)
	}
	at := make([]int, len(gpuColumns))
	for i, name := range gpuColumns {
		if at[i] = slices.Index(header, name); at[i] < 0 {
			return nil, fmt.Errorf("%w: no column %q", ErrGPUPrices, name)
		}
	}
	var prices []GPUPrice
	for {
		cells, err := lines.Read()
		if errors.Is(err, io.EOF) {
			slices.SortStableFunc(prices, compareGPU)
			return prices, nil
		}
		var p GPUPrice
		if err == nil {
			p, err = readGPU(func(column int) string { return cells[at[column]] })
		}
		if err != nil {
			return nil, fmt.Errorf("%w: price %d: %w", ErrGPUPrices, len(prices)+1, err)
		}
		prices = append(prices, p)
	}
}

func readGPU(cell func(int) string) (p GPUPrice, err error) {
	p = GPUPrice{Cloud: cell(0), Region: cell(1), Instance: cell(2), GPU: cell(3), GPUs: cell(4), Kind: cell(5), Currency: cell(7)}
	for _, name := range []string{p.Cloud, p.Region, p.Instance, p.GPU, p.Kind, p.Currency} {
		if name == "" || !validText(name) {
			return p, fmt.Errorf("%.40q is not a name", name)
		}
	}
	if _, _, err = parseDecimal(p.GPUs); err != nil {
		return p, fmt.Errorf("%.40q is not a number of GPUs", p.GPUs)
	}
	if p.PerHour, err = money.Parse(cell(6)); err != nil {
		return p, err
	}
	if p.PerHour <= 0 {
		return p, errors.New("an hour that costs nothing")
	}
	if cell(8) != "" {
		p.AsOf, err = parseWhen(cell(8))
	}
	return p, err
}

func compareGPU(a, b GPUPrice) int {
	return cmp.Or(
		strings.Compare(a.Cloud, b.Cloud), strings.Compare(a.Region, b.Region),
		strings.Compare(a.Instance, b.Instance), strings.Compare(a.Kind, b.Kind),
	)
}
