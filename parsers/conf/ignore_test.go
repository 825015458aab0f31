package conf

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

func TestParseIgnore(t *testing.T) {
	tests := map[string]struct {
		text     string
		want     string // prefixes, blank-separated
		warnings []string
	}{
		"nothing":                 {text: "", want: ""},
		"address":                 {text: "192.0.2.1\n", want: "192.0.2.1/32"},
		"address of 32 bits":      {text: "192.0.2.1/32\n", want: "192.0.2.1/32"},
		"network":                 {text: "192.0.2.0/24\n", want: "192.0.2.0/24"},
		"IPv6":                    {text: "2001:db8::1\n2001:db8::1/128\n2001:db8::/64\n", want: "2001:db8::1/128 2001:db8::1/128 2001:db8::/64"},
		"PortSentry's own lines":  {text: "127.0.0.1/32\n0.0.0.0\n", want: "127.0.0.1/32 0.0.0.0/32"},
		"upper case":              {text: "2001:DB8::A\n", want: "2001:db8::a/128"},
		"no final newline":        {text: "192.0.2.1\n192.0.2.22", want: "192.0.2.1/32 192.0.2.22/32"},
		"blanks, CR and comments": {text: "# mine\r\n\r\n  192.0.2.1 \r\n192.0.2.2\t# a router\n \n", want: "192.0.2.1/32 192.0.2.2/32"},
		"host bits": {
			text: "192.0.2.5/24\n2001:db8::5/64\n",
			want: "192.0.2.0/24 2001:db8::/64",
			warnings: []string{
				"f:1: 192.0.2.5/24 is taken as the network 192.0.2.0/24",
				"f:2: 2001:db8::5/64 is taken as the network 2001:db8::/64",
			},
		},
		"everything": {
			text: "0.0.0.0/0\n::/0\n",
			want: "0.0.0.0/0 ::/0",
			warnings: []string{
				"f:1: 0.0.0.0/0 ignores every IPv4 source",
				"f:2: ::/0 ignores every IPv6 source",
			},
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			d := newDiagnosis("f")
			prefixes := parseIgnore(d, tt.text)
			if err := d.err(); err != nil {
				t.Fatalf("%q: %v", tt.text, err)
			}
			if got := joinPrefixes(prefixes, " "); got != tt.want {
				t.Errorf("%q = %s, want %s", tt.text, got, tt.want)
			}
			var warnings []string
			for _, w := range d.warnings {
				warnings = append(warnings, w.String())
			}
			if diff := cmp.Diff(tt.warnings, warnings); diff != "" {
				t.Errorf("%q: warnings (-want +got):\n%s", tt.text, diff)
			}
		})
	}
}

// TestIgnoreFiles shows what is made of each line of an ignore file, and what
// PortSentry says about it. Files whose names start with "v1-" are read as
// PortSentry 1.2 does.
func TestIgnoreFiles(t *testing.T) {
	paths, err := filepath.Glob("testdata/ignore/*.ignore")
	if err != nil || len(paths) == 0 {
		t.Fatalf("%d files, %v", len(paths), err)
	}
	for _, path := range paths {
		name := filepath.Base(path)
		t.Run(name, func(t *testing.T) {
			parse := parseIgnore
			if strings.HasPrefix(name, "v1-") {
				parse = parsePortSentry1Ignore
			}
			d := newDiagnosis(name)
			prefixes := parse(d, string(read(t, path)))
			var b strings.Builder
			for _, f := range d.faults {
				fmt.Fprintf(&b, "%s\n    PortSentry: %s\n", f, f.Upstream)
			}
			for _, w := range d.warnings {
				fmt.Fprintln(&b, "warning:", w)
				if w.Upstream != "" {
					fmt.Fprintf(&b, "    PortSentry: %s\n", w.Upstream)
				}
			}
			for _, p := range prefixes {
				fmt.Fprintln(&b, "ignored:", p)
			}
			golden(t, path, b.String())
		})
	}
}

// TestLoadPortSentry1Ignore shows that a file which is missing leaves the others
// in force.
func TestLoadPortSentry1Ignore(t *testing.T) {
	dir := t.TempDir()
	one := filepath.Join(dir, "one")
	if err := os.WriteFile(one, []byte("192.0.2.1 the router\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	missing := filepath.Join(dir, "missing")
	set, warnings, err := LoadPortSentry1Ignore(missing, one)
	want := Faults{{
		Place: Place{File: missing}, Text: "open: no such file or directory",
		Upstream: "attackalert: ERROR: cannot open ignore file. Blocking host anyway.",
	}}
	faults, _ := errors.AsType[Faults](err)
	if diff := cmp.Diff(want, faults, cmpopts.IgnoreFields(Fault{}, "Err")); diff != "" || !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("LoadPortSentry1Ignore(missing, one): %v (-want +got):\n%s", err, diff)
	}
	if len(warnings) > 0 || set.Len() != 1 || !set.Contains(netip.MustParseAddr("192.0.2.1")) {
		t.Errorf("LoadPortSentry1Ignore(missing, one) = %d prefixes, warnings %v, want one's", set.Len(), warnings)
	}
}

func TestLoadIgnore(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	one := write("one", "192.0.2.0/24\n")
	two := write("two", "2001:db8::/32\n")
	bad := write("bad", "x\n192.0.2.1\ny\n")
	missing := filepath.Join(dir, "missing")
	pipe := filepath.Join(dir, "pipe")
	if err := syscall.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}

	set, warnings, err := LoadIgnore(one, two)
	if err != nil || len(warnings) > 0 || set.Len() != 2 {
		t.Fatalf("LoadIgnore(one, two) = %d prefixes, %v, %v, want 2", set.Len(), warnings, err)
	}
	for _, addr := range []string{"192.0.2.77", "::ffff:192.0.2.77", "2001:db8::77"} {
		if !set.Contains(netip.MustParseAddr(addr)) {
			t.Errorf("%s is not in the set", addr)
		}
	}

	_, _, err = LoadIgnore(bad, one, missing)
	want := bad + ":1: \"x\": not an address; names are not looked up\n" +
		bad + ":3: \"y\": not an address; names are not looked up\n" +
		missing + ": open: no such file or directory"
	if err == nil || err.Error() != want || !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("LoadIgnore(bad, one, missing) = %v, want %s", err, want)
	}
	faults, _ := errors.AsType[Faults](err)
	if last, want := faults[len(faults)-1], "Unable to open ignore file: "+missing; last.Upstream != want {
		t.Errorf("in PortSentry's words %q, want %q", last.Upstream, want)
	}
	err = soon(t, func() error { _, _, err := LoadIgnore(pipe); return err })
	if want := pipe + ": not a regular file"; err == nil || err.Error() != want {
		t.Errorf("LoadIgnore(pipe) = %v, want %s", err, want)
	}
	if set, _, err := LoadIgnore(); err != nil || set.Len() != 0 {
		t.Errorf("LoadIgnore() = %d prefixes, %v, want none", set.Len(), err)
	}
}

func FuzzIgnore(f *testing.F) {
	for _, seed := range []string{
		"", "# c\n192.0.2.1\n", "192.0.2.5/24 # c\r\n2001:DB8::/64", "0.0.0.0/0", "::ffff:192.0.2.1/97", "x", "1.2.3.4/33", "fe80::1%eth0", "192.0.2.1 x", "192.0.2.1abc", "192.0.2.0/24x",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		for _, parse := range []func(*diagnosis, string) []netip.Prefix{parseIgnore, parsePortSentry1Ignore} {
			printed := joinPrefixes(parse(newDiagnosis("ignore"), text), "\n")
			again := newDiagnosis("ignore")
			if got := joinPrefixes(parse(again, printed), "\n"); got != printed || again.err() != nil {
				t.Fatalf("%q -> %q -> %q, %v", text, printed, got, again.err())
			}
		}
	})
}

func joinPrefixes(prefixes []netip.Prefix, separator string) string {
	texts := make([]string, len(prefixes))
	for i, p := range prefixes {
		texts[i] = p.String()
	}
	return strings.Join(texts, separator)
}
