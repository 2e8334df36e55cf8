package embedded

// pin is one engine package of one platform, as it must be on disk.
type pin struct {
	// pkg is the npm package's name, a folder below node_modules.
	pkg string
	// version is the npm version; the lock file must name the same one.
	version string
	// root is the folder below the package that tree covers.
	root string
	// files are the SHA-256 of single files below root, so that an error can
	// name the file.
	files map[string]string
	// tree is the SHA-256 over the sorted lines "<sha256>  <path>\n" of every
	// regular file below root, or "" when files alone cover what is loaded.
	tree string
}

const (
	chdbVersion     = "26.7.3-stable.1"
	postgresVersion = "18.4.0-beta.17"
)

// chdbPins are the libchdb packages by GOOS/GOARCH. Version 26.7.3-stable.1 is
// published for glibc Linux on x64 only.
var chdbPins = map[string]pin{
	"linux/amd64": {
		pkg:     "@chdb/lib-linux-x64-gnu",
		version: chdbVersion,
		files: map[string]string{
			"libchdb.so": "36ad4e999882821ef13cf2d0f52c93f48e6ee1b4498b35a201c23ce4b8d15bf5",
		},
	},
}

// postgresPins are the Postgres packages by GOOS/GOARCH. The two darwin
// packages hold the same universal binaries.
var postgresPins = map[string]pin{
	"linux/amd64": postgresPin("linux-x64",
		"de0a4a7646c51f032e0088ae6fe9d0833fa280b78d4455681574a32937b32838",
		"515186eed81a1f2741bdcbfeb080af093a59a27fb2896237b04dd6c48bae349d",
		"6beab6014ea28dcc78b8c6a43ec9e3e20536e13a175d75151107410ac866c481",
		"b4bbad729325f5294c79df6ef58a8b5783cd926f8f811728112de040724b1824",
	),
	"linux/arm64": postgresPin("linux-arm64",
		"89fe0775643a67b2f5dd7b568e2afc29c172d1b4956038d6f1e185070f9ac51f",
		"a1038e792dff9620898a99ca4957bffa5a0d3b0566c2944cdb5cafcdad80df64",
		"286ecc6cfd0b36baac899e5efa260ed46221e5cb57014291d64b51fea48d178e",
		"b8738e20abbe52fa555810ea97e05d9fb4101f1313b14c2e30cfd03c01e9b923",
	),
	"darwin/amd64": postgresPin("darwin-x64",
		"515d8e4c690ecd6ae86074eedd5d6d0ed50df434b3743274085b9692f1e923f9",
		"b81069a19bcec5d2dd263f5c9bce2ce0b5075ae0f9b8a5c81b79f34bef503c39",
		"2c37317f9f606d9716e493d6765ff14f84d8df9b8c07eaa722431de16446f071",
		"99aa2d639fae8fec588880b7726b8cffedb8defc57b3e494bd45525cbbd3afb8",
	),
	"darwin/arm64": postgresPin("darwin-arm64",
		"515d8e4c690ecd6ae86074eedd5d6d0ed50df434b3743274085b9692f1e923f9",
		"b81069a19bcec5d2dd263f5c9bce2ce0b5075ae0f9b8a5c81b79f34bef503c39",
		"2c37317f9f606d9716e493d6765ff14f84d8df9b8c07eaa722431de16446f071",
		"99aa2d639fae8fec588880b7726b8cffedb8defc57b3e494bd45525cbbd3afb8",
	),
}

func postgresPin(platform, postgres, initdb, pgCtl, tree string) pin {
	return pin{
		pkg:     "@embedded-postgres/" + platform,
		version: postgresVersion,
		root:    "native",
		files: map[string]string{
			"bin/postgres": postgres,
			"bin/initdb":   initdb,
			"bin/pg_ctl":   pgCtl,
		},
		tree: tree,
	}
}
