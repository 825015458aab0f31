package conf

import (
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/portsnare/portsnare/detector"
	"github.com/portsnare/portsnare/internal/mantest"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// opaque lets cmp compare the types of a Config that it cannot see into.
var opaque = cmp.Options{
	cmp.Comparer(func(a, b detector.PortSet) bool { return a.String() == b.String() }),
	cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }),
}

// TestConvert shows what each file means in the native form, and proves that
// the native form means the same.
func TestConvert(t *testing.T) {
	for _, path := range inputs(t, "testdata/convert") {
		t.Run(filepath.Base(path), func(t *testing.T) {
			c, warnings, err := parse(filepath.Base(path), read(t, path))
			if err != nil {
				t.Fatalf("parse(%s): %v", path, err)
			}
			native := c.AppendNative(nil)
			again, _, err := parse("native.toml", native)
			if err != nil {
				t.Fatalf("the native form of %s is faulty:\n%v\n%s", path, err, native)
			}
			if diff := cmp.Diff(c, again, opaque); diff != "" {
				t.Errorf("%s changed on the way through the native form (-file +native):\n%s", path, diff)
			}

			var b strings.Builder
			for _, w := range warnings {
				fmt.Fprintf(&b, "# %s\n", w)
				if w.Upstream != "" {
					fmt.Fprintf(&b, "#     PortSentry: %s\n", w.Upstream)
				}
			}
			b.Write(native)
			golden(t, path, b.String())
		})
	}
}

// TestFaults pins what an administrator reads about each fault, and what
// PortSentry said.
func TestFaults(t *testing.T) {
	for _, path := range inputs(t, "testdata/faults") {
		t.Run(filepath.Base(path), func(t *testing.T) {
			_, warnings, err := parse(filepath.Base(path), read(t, path))
			faults, ok := errors.AsType[Faults](err)
			if !ok {
				t.Fatalf("parse(%s) = %v, want Faults", path, err)
			}
			var b strings.Builder
			for _, f := range faults {
				fmt.Fprintln(&b, f)
				if f.Upstream != "" {
					fmt.Fprintf(&b, "    PortSentry: %s\n", f.Upstream)
				}
			}
			for _, w := range warnings {
				fmt.Fprintln(&b, "warning:", w)
			}
			golden(t, path, b.String())
		})
	}
}

// TestUpstreamTexts makes sure that no text which PortSentry has about a file
// goes without an example.
func TestUpstreamTexts(t *testing.T) {
	var examples strings.Builder
	for _, dir := range []string{"convert", "faults", "ignore"} {
		paths, err := filepath.Glob("testdata/" + dir + "/*.golden")
		if err != nil {
			t.Fatal(err)
		}
		for _, path := range paths {
			examples.Write(read(t, path))
		}
	}
	for _, text := range []string{
		// PortSentry 2
		"Invalid config file entry at line 2",
		"Invalid character found after config key. Require equals (=) after key. Line 1",
		`Invalid value on line 1, require quote character (") to start value`,
		`Invalid value at line 1, require an end quote character (") at end of value`,
		"Invalid value at line 1, require a value",
		"Unable to parse TCP_PORTS directive in config file",
		"Unable to parse UDP_PORTS directive in config file",
		"Invalid config file entry for RESOLVE_HOST",
		"Invalid config file entry for BLOCK_TCP",
		"Invalid config file entry for BLOCK_UDP",
		"Invalid config file entry for KILL_RUN_CMD_FIRST",
		"Invalid config file entry for SCAN_TRIGGER",
		"Selected mode: stealth, but no TCP_PORTS or UDP_PORTS specified in config file",
		"Selected mode: connect, but no TCP_PORTS or UDP_PORTS specified in config file",
		"KILL_RUN_CMD must be specified if BLOCK_TCP or BLOCK_UDP is set to 2",
		"KILL_HOSTS_DENY and/or KILL_ROUTE must be specified if BLOCK_TCP or BLOCK_UDP is set to 1",
		"Unable to extract single port: abc", "Unable to extract single port: 0",
		"Unable to extract single port: 65536", "Unable to extract single port: 1 ",
		"Unable to extract port range start: -5", "Unable to extract port range start: 0-5",
		"Unable to extract port range end: 1-", "Unable to extract port range end: 1-70000", "Unable to extract port range end: 1-2-3",
		"Invalid port range: 5-1, start port must be less than or equal to end port",
		"Invalid port range: 12345-123456",
		"Invalid character in ignore file: router.example.org",
		"Invalid netmask in ignore file: 192.0.2.0/255.255.255.0",
		"Invalid netmask in ignore file, must be 0-32: 192.0.2.1",
		"Invalid netmask in ignore file, must be 0-128: 2001:db8::1",
		"Unable to read IP address 192.0.2: not an IPv4 or IPv6 address",
		// PortSentry 1.2
		"InitConfig: Cannot retrieve BLOCKED_FILE option! Aborting",
		"InitConfig: Cannot retrieve HISTORY_FILE option! Aborting",
		"InitConfig: Cannot retrieve IGNORE_FILE option! Aborting",
		"adminalert: ERROR: Could not read SCAN_TRIGGER option from config file. Disabling SCAN DETECTION TRIGGER",
		"adminalert: ERROR: Could not read ADVANCED_PORTS_TCP option from config file. Assuming 1024.",
		"adminalert: ERROR: No TCP ports supplied in config file. Aborting",
		"adminalert: ERROR: No UDP ports supplied in config file. Aborting",
		"adminalert: ERROR: Could not read TCP_PORTS option from config file",
		"adminalert: ERROR: Could not read UDP_PORTS option from config file",
		"adminalert: Quotes missing from KILL_ROUTE token. Option skipped",
		"adminalert: Invalid netmask in config file: 192.0.2.1/33  Ignoring entry.",
	} {
		if !strings.Contains(examples.String(), "    PortSentry: "+text+"\n") {
			t.Errorf("no example of %q", text)
		}
	}
}

func TestDefault(t *testing.T) {
	c := Default()
	_, warnings, err := parse("default.toml", []byte(DefaultNative()))
	if err != nil || len(warnings) > 0 {
		t.Fatalf("default.toml: %v, warnings %v", err, warnings)
	}
	want := Config{
		Mode:       Stealth,
		Interfaces: []string{AllInterfaces},
		State:      "/var/lib/portsnare/state.db",
		Control:    "/run/portsnare/control.sock",
		Detect:     Detect{TCPPorts: c.Detect.TCPPorts, UDPPorts: c.Detect.UDPPorts},
		Ban: Ban{
			Evidence: EvidenceOff, TCP: ReactOff, UDP: ReactOff, FileFormat: BanFilePortSentry2,
			For: time.Hour, Max: 7 * 24 * time.Hour, Memory: 24 * time.Hour, Grace: 10 * time.Minute,
			IPv6Prefix: 64, PerMinute: 600, Total: 100_000,
		},
		Log: Log{
			SyslogTag: DefaultSyslogTag, Format: LinesPortSentry2, HistoryFormat: HistoryPortSentry2, ResolveWithin: DefaultResolveWithin,
		},
	}
	if diff := cmp.Diff(want, c, opaque); diff != "" {
		t.Errorf("Default() (-want +got):\n%s", diff)
	}
}

// TestDefaultPorts guards the rules by which the default trap ports were
// chosen.
func TestDefaultPorts(t *testing.T) {
	const ephemeral = 32768 // and up: where Linux puts sockets that did not ask for a port
	d := Default().Detect
	sets := map[string]detector.PortSet{"TCP": d.TCPPorts, "UDP": d.UDPPorts}
	for name, set := range sets {
		if set.Len() == 0 {
			t.Errorf("no %s ports", name)
		}
		for _, r := range set.Ranges() {
			if r.Last >= ephemeral {
				t.Errorf("%s port %d is in Linux's ephemeral range", name, r.Last)
			}
		}
		for _, port := range []uint16{22, 25, 80, 113, 443, 514, 587, 993, 3389, 5060, 7680, 8080, 9100} {
			if set.Contains(port) {
				t.Errorf("%s port %d is reached by mistake", name, port)
			}
		}
	}
}

// TestModesAndPorts shows which ports are watched how.
func TestModesAndPorts(t *testing.T) {
	const apart = "detect.tcp_ports = \"1\"\ndetect.udp_ports = \"2\"\ntrap.tcp_ports = \"3\"\n"
	tests := map[string]struct {
		text            string
		sniffed, opened string // TCP and UDP
	}{
		"stealth":               {"mode = \"stealth\"\n" + apart, "1 2", " "},
		"trap":                  {"mode = \"trap\"\n" + apart, " ", "3 "},
		"both":                  {"mode = \"both\"\n" + apart, "1 2", "3 "},
		"trap, one pair":        {"mode = \"trap\"\ndetect.udp_ports = \"2\"\n", " ", " 2"},
		"both, one pair":        {"mode = \"both\"\ndetect.tcp_ports = \"1\"\n", "1 ", "1 "},
		"trap, only trap ports": {"mode = \"trap\"\ntrap.udp_ports = \"3\"\n", " ", " 3"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			c, _, err := parse("f.toml", []byte(tt.text))
			if err != nil {
				t.Fatal(err)
			}
			words := func(tcp, udp detector.PortSet) string { return tcp.String() + " " + udp.String() }
			if got := words(c.Sniffed()); got != tt.sniffed {
				t.Errorf("Sniffed() = %q, want %q", got, tt.sniffed)
			}
			if got := words(c.Opened()); got != tt.opened {
				t.Errorf("Opened() = %q, want %q", got, tt.opened)
			}
		})
	}
}

func TestLoad(t *testing.T) {
	dir := t.TempDir()
	large := filepath.Join(dir, "large.conf")
	if err := os.WriteFile(large, make([]byte, maxFileSize+1), 0o600); err != nil {
		t.Fatal(err)
	}
	pipe := filepath.Join(dir, "pipe")
	if err := syscall.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	missing := filepath.Join(dir, "portsentry.conf")
	tests := map[string]struct {
		path     string
		want     string
		upstream string
		cause    error
	}{
		"missing":        {path: missing, want: missing + ": open: no such file or directory", upstream: "Cannot open config file: " + missing + ".", cause: fs.ErrNotExist},
		"missing native": {path: missing + ".toml", want: missing + ".toml: open: no such file or directory", cause: fs.ErrNotExist},
		"directory":      {path: dir, want: dir + ": is a directory", upstream: "Cannot open config file: " + dir + "."},
		"named pipe":     {path: pipe, want: pipe + ": not a regular file", upstream: "Cannot open config file: " + pipe + "."},
		"device":         {path: "/dev/zero", want: "/dev/zero: not a regular file", upstream: "Cannot open config file: /dev/zero."},
		"too large":      {path: large, want: large + ": larger than 1048576 bytes; is it the right file?", cause: errTooLarge},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			err := soon(t, func() error { _, _, err := Load(tt.path); return err })
			if err == nil || err.Error() != tt.want {
				t.Fatalf("Load(%s) = %v, want %s", tt.path, err, tt.want)
			}
			if fault, _ := errors.AsType[Fault](err); fault.Upstream != tt.upstream {
				t.Errorf("PortSentry's words are %q, want %q", fault.Upstream, tt.upstream)
			}
			if tt.cause != nil && !errors.Is(err, tt.cause) {
				t.Errorf("Load(%s) does not wrap %v", tt.path, tt.cause)
			}
		})
	}
}

func TestLoadIgnoreNone(t *testing.T) {
	set, warnings, err := LoadIgnore(os.DevNull)
	if err != nil || len(warnings) > 0 || set.Len() > 0 {
		t.Errorf("LoadIgnore(%s) = %d prefixes, %v, %v, want none", os.DevNull, set.Len(), warnings, err)
	}
}

func TestLoadLeavesOutAByteOrderMark(t *testing.T) {
	for name, text := range map[string]string{"f.conf": "TCP_PORTS=\"1\"\n", "f.toml": "detect.tcp_ports = \"1\"\n"} {
		path := filepath.Join(t.TempDir(), name)
		if err := os.WriteFile(path, []byte("\ufeff"+text), 0o600); err != nil {
			t.Fatal(err)
		}
		cfg, _, err := Load(path)
		if err != nil || cfg.Detect.TCPPorts.String() != "1" {
			t.Errorf("%s with a byte order mark: ports %q, %v, want 1", name, cfg.Detect.TCPPorts, err)
		}
	}
}

// soon returns what f returns, which must not wait for anything.
func soon(t *testing.T, f func() error) error {
	t.Helper()
	done := make(chan error, 1)
	go func() { done <- f() }()
	select {
	case err := <-done:
		return err
	case <-time.After(10 * time.Second):
		t.Fatal("still waiting after ten seconds")
		return nil
	}
}

func TestLoadNamesTheFileAsGiven(t *testing.T) {
	path := filepath.Join(t.TempDir(), "portsentry.conf")
	if err := os.WriteFile(path, []byte("TCP_PORTS=\"7\"\nSCAN_TRIGGER=\"x\"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, _, err := Load(path)
	if want := path + `:2: SCAN_TRIGGER: "x" is not a number from 0 to 2147483647`; err == nil || err.Error() != want {
		t.Errorf("Load = %v, want %s", err, want)
	}
}

func TestPlaceString(t *testing.T) {
	tests := map[string]struct {
		place Place
		want  string
	}{
		"nothing known": {Place{}, ""},
		"key only":      {Place{Key: "mode"}, "mode"},
		"file only":     {Place{File: "f"}, "f"},
		"file and key":  {Place{File: "f", Key: "mode"}, "f: mode"},
		"file and line": {Place{File: "f", Line: 3}, "f:3"},
		"all three":     {Place{File: "f", Line: 3, Key: "mode"}, "f:3: mode"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			if got := tt.place.String(); got != tt.want {
				t.Errorf("%#v.String() = %q, want %q", tt.place, got, tt.want)
			}
		})
	}
}

// TestRepeatedKeysStayBounded feeds more repetitions than anyone wants to read
// about.
func TestRepeatedKeysStayBounded(t *testing.T) {
	_, warnings, err := parse("p.conf", []byte(strings.Repeat("TCP_PORTS=\"7\"\n", 10_000)))
	if err != nil || len(warnings) != maxFindings {
		t.Errorf("%d warnings and %v, want %d and no fault", len(warnings), err, maxFindings)
	}
}

// TestFaultsStayBounded feeds more faults than anyone wants to read.
func TestFaultsStayBounded(t *testing.T) {
	_, _, err := parse("p.conf", []byte(strings.Repeat("x\n", 10_000)))
	faults, _ := errors.AsType[Faults](err)
	if len(faults) != maxFindings {
		t.Fatalf("%d faults, want %d", len(faults), maxFindings)
	}
	const want = "p.conf:100: too many faults; correct the ones above first"
	if got := faults[maxFindings-1].Error(); got != want {
		t.Errorf("the last fault is %q, want %q", got, want)
	}
}

// TestDocumented makes sure that the manual leaves no key out.
func TestDocumented(t *testing.T) {
	manual := string(read(t, "../../docs/configuration.md"))
	for key := range nativeKeys {
		if !strings.Contains(manual, "| `"+key+"` |") {
			t.Errorf("docs/configuration.md has no row for %s", key)
		}
	}
	for key := range outputKeys {
		if !strings.Contains(manual, "| `output.NAME."+key+"` |") {
			t.Errorf("docs/configuration.md has no row for output.NAME.%s", key)
		}
	}
	for name, settings := range outputSettings {
		for setting := range settings {
			if !strings.Contains(manual, "\n| `"+setting+"` |") {
				t.Errorf("docs/configuration.md has no row for the setting %s of %s", setting, name)
			}
		}
	}
	for key, k := range portSentryKeys {
		if !strings.Contains(manual, "| `"+key+"` | `"+k.native+"` |") {
			t.Errorf("docs/configuration.md has no row that maps %s to %s", key, k.native)
		}
	}
}

// TestPortSentry1Documented makes sure that the manual leaves out no key that
// only PortSentry 1.2 has.
func TestPortSentry1Documented(t *testing.T) {
	manual := string(read(t, "../../docs/configuration.md"))
	for _, key := range portSentry1Ports {
		if !strings.Contains(manual, "| `"+key+"` |") {
			t.Errorf("docs/configuration.md has no row for %s", key)
		}
	}
}

func TestManualPage(t *testing.T) {
	const page = "../../packaging/deb/man/portsnare.toml.5"
	mantest.Lint(t, page)
	keys := append(slices.Collect(maps.Keys(nativeKeys)), "output.NAME.settings")
	for key := range outputKeys {
		keys = append(keys, "output.NAME."+key)
	}
	for _, settings := range outputSettings {
		keys = slices.AppendSeq(keys, maps.Keys(settings))
	}
	mantest.Explains(t, page, "Cm", keys)
}

// parse reads text in the dialect that a test file's name stands for: native if
// it ends in ".toml"; PortSentry 1.2, in the modes of the first line, if it
// starts with "v1-"; PortSentry 2 in connect mode if it starts with "connect-",
// and in stealth mode otherwise.
func parse(name string, text []byte) (Config, []Warning, error) {
	var read dialect
	switch {
	case isNative(name):
		read = parseNative
	case strings.HasPrefix(name, "v1-"):
		list, _, _ := strings.Cut(strings.TrimPrefix(string(text), "# --modes "), "\n")
		words, err := ParseModeWords(list)
		if err != nil {
			return Config{}, nil, fmt.Errorf("first line of %s: %w", name, err)
		}
		read = new(PortSentry1).dialect(words)
	case strings.HasPrefix(name, "connect-"):
		read = portSentry2(Trap)
	default:
		read = portSentry2(Stealth)
	}
	return read.parse(name, text)
}

// inputs lists the files in dir that are not golden files.
func inputs(t testing.TB, dir string) []string {
	t.Helper()
	var paths []string
	for _, pattern := range []string{"*.conf", "*.toml"} {
		found, err := filepath.Glob(filepath.Join(dir, pattern))
		if err != nil {
			t.Fatal(err)
		}
		paths = append(paths, found...)
	}
	if len(paths) == 0 {
		t.Fatalf("no input in %s", dir)
	}
	return paths
}

// golden compares got with the golden file of an input, or rewrites it.
func golden(t *testing.T, input, got string) {
	t.Helper()
	path := input + ".golden"
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if diff := cmp.Diff(string(read(t, path)), got); diff != "" {
		t.Errorf("%s (-want +got):\n%s", path, diff)
	}
}

func read(t testing.TB, path string) []byte {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return text
}
