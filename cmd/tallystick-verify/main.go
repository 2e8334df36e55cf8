// Command tallystick-verify checks an evidence package of a Tallystick ledger, or
// a plain export, on the auditor's own machine: offline, with public keys only.
//
// It shares nothing with the program that wrote the ledger but the description
// of the format (docs/ledger-format.md), and imports nothing but ledger/verify
// and the standard library. It trusts nothing in the package that it can compute
// or that a key it was given did not sign. It changes no file and opens no
// connection.
package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"syscall"

	"github.com/tallystick/tallystick/ledger/verify"
)

// Exit codes: those of `tallystick`.
const (
	exitIntact  = 0
	exitUsage   = 2
	exitBroken  = 3
	exitUnknown = 8
)

const usage = `Usage: tallystick-verify [options] PACKAGE

Checks an evidence package (.zip) or an export (.tsx) of a Tallystick ledger,
offline. Ends with 0 intact, 2 wrong usage, 3 broken, 8 cannot tell.

  --key FILE           the public keys that you trust, one a line, known from
                       elsewhere than the package
  --self-asserted      without a key: believe the keys in the package (shows that
                       it fits together, not who made it)
  --checkpoint FILE    a signed checkpoint that you kept; may be given again
  --witness-key FILE   public keys of witnesses whose signatures are wanted
  --witnesses N        how many of them must have signed (default: all)
  --mac-keys FILE      check MACs with the keys in FILE
  --tenant ID          the tenant that the package must be of
  --workers N          goroutines that check (default: all cores)
  --json               print the report as JSON
  --version            print the version
`

// options are the command line.
type options struct {
	keys, checkpoints, witnessKeys files
	selfAsserted, json, version    bool
	witnesses, workers             int
	macKeys, tenant, path          string
}

// files are the values of a flag that may be given again.
type files []string

func (f *files) String() string     { return fmt.Sprint([]string(*f)) }
func (f *files) Set(v string) error { *f = append(*f, v); return nil }

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// errUsage is a command line that cannot be followed.
var errUsage = errors.New("usage")

func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	o, err := parse(args)
	switch {
	case errors.Is(err, flag.ErrHelp):
		fmt.Fprint(stdout, usage)
		return exitIntact
	case err != nil:
		fmt.Fprintf(stderr, "tallystick-verify: %v\n\n%s", err, usage)
		return exitUsage
	case o.version:
		fmt.Fprintln(stdout, "tallystick-verify", version())
		return exitIntact
	}
	rep, err := o.verify(ctx, stderr)
	if err != nil {
		fmt.Fprintln(stderr, "tallystick-verify:", err)
		if errors.Is(err, errUsage) || errors.Is(err, verify.ErrNotPackage) || errors.Is(err, verify.ErrNotExport) {
			return exitUsage
		}
		return exitUnknown
	}
	if err := o.print(stdout, &rep); err != nil {
		fmt.Fprintln(stderr, "tallystick-verify:", err)
		return exitUnknown
	}
	switch rep.Verdict {
	case verify.Intact:
		return exitIntact
	case verify.Broken:
		return exitBroken
	default:
		return exitUnknown
	}
}

func parse(args []string) (*options, error) {
	o := &options{}
	fs := flag.NewFlagSet("tallystick-verify", flag.ContinueOnError)
	fs.SetOutput(io.Discard)
	fs.Var(&o.keys, "key", "")
	fs.Var(&o.checkpoints, "checkpoint", "")
	fs.Var(&o.witnessKeys, "witness-key", "")
	fs.BoolVar(&o.selfAsserted, "self-asserted", false, "")
	fs.BoolVar(&o.json, "json", false, "")
	fs.BoolVar(&o.version, "version", false, "")
	fs.IntVar(&o.witnesses, "witnesses", 0, "")
	fs.IntVar(&o.workers, "workers", runtime.GOMAXPROCS(0), "")
	fs.StringVar(&o.macKeys, "mac-keys", "", "")
	fs.StringVar(&o.tenant, "tenant", "", "")
	// Options may stand behind the package's name too.
	var names []string
	for rest := args; ; {
		if err := fs.Parse(rest); err != nil {
			return nil, err
		}
		if rest = fs.Args(); len(rest) == 0 {
			break
		}
		names, rest = append(names, rest[0]), rest[1:]
	}
	switch {
	case o.version:
		return o, nil
	case len(names) != 1:
		return nil, errors.New("one package is needed")
	case o.workers < 1 || o.workers > 1024 || o.witnesses < 0:
		return nil, errors.New("--workers: 1 to 1024; --witnesses: not below 0")
	case o.selfAsserted && len(o.keys) > 0:
		return nil, errors.New("--self-asserted goes without --key")
	}
	o.path = names[0]
	return o, nil
}

// read reads the files of a flag, which are small.
func (f files) read(flag string) ([][]byte, error) {
	var list [][]byte
	for _, path := range f {
		b, err := os.ReadFile(path)
		if err != nil {
			return nil, fmt.Errorf("%w: --%s: %w", errUsage, flag, err)
		}
		list = append(list, b)
	}
	return list, nil
}

func (f files) verifierKeys(flag string) (verify.VerifierKeys, error) {
	list, err := f.read(flag)
	if err != nil {
		return nil, err
	}
	keys, err := verify.ParseKeys(bytes.Join(list, []byte("\n")))
	if err != nil {
		return nil, fmt.Errorf("%w: --%s: %w", errUsage, flag, err)
	}
	return keys, nil
}

// trust reads whom the command line trusts.
func (o *options) trust() (p verify.PackageOptions, err error) {
	p = verify.PackageOptions{Tenant: o.tenant, SelfAsserted: o.selfAsserted, Quorum: o.witnesses, Workers: o.workers}
	var errs [4]error
	p.Trusted, errs[0] = o.keys.verifierKeys("key")
	p.Witnesses, errs[1] = o.witnessKeys.verifierKeys("witness-key")
	p.Kept, errs[2] = o.checkpoints.read("checkpoint")
	if o.macKeys != "" {
		var m verify.MACKeys
		m, errs[3] = readMACKeys(o.macKeys)
		p.MACKeys, p.AuditMACKeys, p.MACTenant = m.Ledger, m.Audit, m.Tenant
	}
	return p, errors.Join(errs[:]...)
}

func readMACKeys(path string) (m verify.MACKeys, err error) {
	b, err := os.ReadFile(path)
	if err == nil {
		m, err = verify.ParseMACKeys(b)
	}
	if err != nil {
		err = fmt.Errorf("%w: --mac-keys: %w", errUsage, err)
	}
	return m, err
}

// verify checks the file, whatever of the two it is.
func (o *options) verify(ctx context.Context, stderr io.Writer) (verify.Report, error) {
	p, err := o.trust()
	if err != nil {
		return verify.Report{}, err
	}
	f, err := os.Open(o.path)
	if err != nil {
		return verify.Report{}, fmt.Errorf("%w: %w", errUsage, err)
	}
	defer f.Close() //nolint:errcheck // it was only read
	info, err := f.Stat()
	if err != nil {
		return verify.Report{}, err
	}
	if !info.Mode().IsRegular() {
		return verify.Report{}, fmt.Errorf("%w: %s is not a file", errUsage, o.path)
	}
	bar := newProgress(stderr)
	defer bar.finish()
	p.Progress = bar.update
	rep, err := verify.Package(ctx, f, info.Size(), p)
	if !errors.Is(err, verify.ErrNotPackage) {
		return rep, err
	}
	h, headerErr := verify.ReadExportHeader(f)
	if headerErr != nil {
		return rep, fmt.Errorf("%s: %w, and no export either", o.path, err)
	}
	if p.MACTenant != "" && p.MACTenant != h.Tenant {
		return rep, fmt.Errorf("%w: --mac-keys: they are of tenant %q, the export is of %q", errUsage, p.MACTenant, h.Tenant)
	}
	return o.verifyExport(ctx, f, p)
}

// verifyExport checks a plain export, and holds it against the checkpoints of
// the command line.
func (o *options) verifyExport(ctx context.Context, f *os.File, p verify.PackageOptions) (verify.Report, error) {
	vo := verify.Options{Tenant: p.Tenant, Workers: p.Workers, Keys: p.MACKeys, Progress: p.Progress}
	for i, b := range p.Kept {
		c, err := verify.OpenCheckpoint(b, p.Trusted, p.Witnesses)
		if err != nil {
			return verify.Report{}, fmt.Errorf("%s: %w", o.checkpoints[i], err)
		}
		vo.Checkpoints = append(vo.Checkpoints, c)
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return verify.Report{}, err
	}
	rep, err := verify.File(ctx, f, vo)
	if err == nil && len(p.Kept) == 0 {
		rep.Warnings = append(rep.Warnings, "an export by itself is signed by nobody: give a --checkpoint, or ask for an evidence package")
	}
	return rep, err
}

func version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok || info.Main.Version == "" {
		return "(unversioned)"
	}
	return info.Main.Version
}
