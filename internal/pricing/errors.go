package pricing

import "errors"

// The errors of this package. A caller that gets one has no book and keeps the one it had.
var (
	// ErrFormat: the bytes are not the canonical serialisation of a book.
	ErrFormat = errors.New("pricing: not a canonical price book")
	// ErrRow: a row breaks a rule of NewBook; the text says which row and rule.
	ErrRow = errors.New("pricing: bad price row")
	// ErrOverlap: two rows would both price the same usage.
	ErrOverlap = errors.New("pricing: overlapping price rows")
	// ErrRate: a rate is negative, too large, or not a whole number of 1e-18 USD.
	ErrRate = errors.New("pricing: rate is not exact in 1e-18 USD")
	// ErrImport: a price list is not in the form its importer reads.
	ErrImport = errors.New("pricing: cannot read price list")
	// ErrDiff: a difference was made from another book than the one it is applied to.
	ErrDiff = errors.New("pricing: the difference is not one from this book")
	// ErrDiscount: a discount breaks a rule, or is on nothing that the book prices.
	ErrDiscount = errors.New("pricing: bad discount")
	// ErrGPUPrices: a list of GPU prices is not in the form that is read.
	ErrGPUPrices = errors.New("pricing: cannot read GPU prices")
)
