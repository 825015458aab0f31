package hostsdeny

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/portsnare/portsnare/detector"
	"github.com/portsnare/portsnare/outputs/outputapi"
	"github.com/portsnare/portsnare/outputs/outputtest"
)

func newModule() outputapi.Module { return new(Module) }

func TestContract(t *testing.T) {
	for line, many := range map[string]int{
		"ALL: $TARGET$": 10_000,
		"sshd: [$TARGET$] : spawn logger $PORT$ $MODE$": 100,
	} {
		t.Run(line, func(t *testing.T) {
			outputtest.Run(t, newModule, outputtest.Options{Bans: many, World: func(t *testing.T) outputtest.World {
				path := deny(t, before)
				return outputtest.World{
					Settings: map[string]any{"file": path, "line": line},
					Banned:   func(t *testing.T) []netip.Prefix { return banned(t, path) },
				}
			}})
		})
	}
}

// banned returns the sources whose lines stand between the marks of a file, and
// fails if anything else in it is not as it was before.
func banned(t *testing.T, path string) []netip.Prefix {
	t.Helper()
	text := read(t, path)
	if text == before {
		return nil
	}
	block, ok := strings.CutPrefix(text, before+beginMark+"\n")
	block, ended := strings.CutSuffix(block, endMark+"\n")
	if !ok || !ended {
		t.Fatalf("the file is\n%s", text)
	}
	var sources []netip.Prefix
	for line := range strings.Lines(block) {
		client := strings.NewReplacer("[", "", "]", "").Replace(strings.Fields(line)[1])
		addr, mask, isNetwork := strings.Cut(client, "/")
		if ip := net.ParseIP(mask).To4(); isNetwork && ip != nil {
			bits, _ := net.IPMask(ip).Size()
			sources = append(sources, netip.PrefixFrom(netip.MustParseAddr(addr), bits))
			continue
		}
		sources = append(sources, prefix(client))
	}
	return sources
}

func configured(t *testing.T, settings map[string]any) *Module {
	t.Helper()
	m := new(Module)
	if err := configure(m, settings); err != nil {
		t.Fatal(err)
	}
	return m
}

func configure(m *Module, settings map[string]any) error {
	text, err := json.Marshal(settings)
	if err != nil {
		return err
	}
	return m.Configure(context.Background(), outputapi.Configuration{Settings: text})
}

func ban(source string) detector.Ban { return detector.Ban{Source: prefix(source)} }

func TestSettings(t *testing.T) {
	tests := map[string]struct {
		settings map[string]any
		want     outputapi.Faults
	}{
		"none":           {nil, nil},
		"names nobody":   {map[string]any{"line": "ALL: ALL"}, nil}, // told at each ban, as PortSentry does
		"empty line":     {map[string]any{"line": ""}, outputapi.Faults{{Key: "line", Text: "line for hosts.deny is empty"}}},
		"two lines":      {map[string]any{"line": "ALL: $TARGET$\nx"}, outputapi.Faults{{Key: "line", Text: `line for hosts.deny holds a newline or a NUL: "ALL: [2001:db8:1111:1111:1111:1111:1111:1100]/120\nx"`}}},
		"comment":        {map[string]any{"line": "# $TARGET$"}, outputapi.Faults{{Key: "line", Text: `"# $TARGET$" is a comment, which keeps nobody out`}}},
		"relative file":  {map[string]any{"file": "hosts.deny"}, outputapi.Faults{{Key: "file", Text: `"hosts.deny" is no absolute path`}}},
		"mode":           {map[string]any{"mode": "atcp"}, nil},
		"unknown mode":   {map[string]any{"mode": "x"}, outputapi.Faults{{Key: "mode", Text: `"x" is no mode`}}},
		"another's word": {map[string]any{"lines": "x"}, outputapi.Faults{{Key: "lines", Text: "unknown key"}}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			err := configure(new(Module), tt.settings)
			faults, ok := errors.AsType[outputapi.Faults](err)
			if diff := cmp.Diff(tt.want, faults); diff != "" || (err != nil) != ok {
				t.Errorf("Configure(%v) = %v (-want +got):\n%s", tt.settings, err, diff)
			}
		})
	}
}

// act is what a result tells of, as text.
func act(t *testing.T, results []outputapi.Result, err error) string {
	t.Helper()
	if err != nil || len(results) != 1 || len(results[0].Acts) != 1 {
		t.Fatalf("%v, %v, want one result with one act", results, err)
	}
	a := results[0].Acts[0]
	if !errors.Is(a.Err, results[0].Err) || a.Kind != detector.ActHostsDeny {
		t.Errorf("act %+v of the result %v", a, results[0].Err)
	}
	switch {
	case a.Err != nil:
		return a.Text + ": " + a.Err.Error()
	case a.Present:
		return a.Text + " is present"
	}
	return a.Text
}

func TestActs(t *testing.T) {
	path := deny(t, before+"ALL: 192.0.2.9\n")
	missing := filepath.Join(t.TempDir(), "hosts.deny")
	tests := map[string]struct {
		settings map[string]any
		source   string
		want     string
	}{
		"a new line":      {map[string]any{"file": path}, "192.0.2.7", "ALL: 192.0.2.7"},
		"somebody else's": {map[string]any{"file": path}, "192.0.2.9", "ALL: 192.0.2.9 is present"},
		"no target":       {map[string]any{"file": path, "line": "ALL: ALL"}, "192.0.2.7", "ALL: ALL: no $TARGET$ in it"},
		"no file":         {map[string]any{"file": missing}, "192.0.2.7", "ALL: 192.0.2.7: Cannot stat file " + missing + ": No such file or directory"},
		"mode and port":   {map[string]any{"file": path, "line": "ALL: $TARGET$ : spawn x $MODE$ $PORT$"}, "192.0.2.7", "ALL: 192.0.2.7 : spawn x unknown 0"},
		"mode of 1.2":     {map[string]any{"file": path, "line": "ALL: $TARGET$ : spawn x $MODE$", "mode": "stcp"}, "192.0.2.7", "ALL: 192.0.2.7 : spawn x stcp"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			m := configured(t, tt.settings)
			results, err := m.ChangeBans(t.Context(), []detector.Ban{ban(tt.source)}, nil)
			if got := act(t, results, err); got != tt.want {
				t.Errorf("the act is %q, want %q", got, tt.want)
			}
		})
	}
}

func TestMissingFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "hosts.deny")
	m := configured(t, map[string]any{"file": path})
	for range 2 {
		if _, err := m.SetBans(t.Context(), nil); err != nil {
			t.Errorf("SetBans of none without a file: %v", err)
		}
		if _, err := m.ChangeBans(t.Context(), nil, []detector.Ban{ban("192.0.2.7")}); err != nil {
			t.Errorf("a ban lifted without a file: %v", err)
		}
		m = configured(t, map[string]any{"file": path, "create": true})
	}
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the file was made for nothing: %v", err)
	}
	results, err := m.SetBans(t.Context(), []detector.Ban{ban("192.0.2.7")})
	if got, want := act(t, results, err), "ALL: 192.0.2.7"; got != want {
		t.Errorf("the act is %q, want %q", got, want)
	}
	check(t, path, beginMark+"\nALL: 192.0.2.7\n"+endMark+"\n")
}

// Rules that somebody else wrote stay when the ban of their source ends.
func TestRulesOfOthersStay(t *testing.T) {
	const theirs = before + "ALL: 192.0.2.9\n"
	path := deny(t, theirs)
	m := configured(t, map[string]any{"file": path})
	for _, sources := range [][]detector.Ban{{ban("192.0.2.9"), ban("192.0.2.7")}, {ban("192.0.2.9")}, nil} {
		if _, err := m.SetBans(t.Context(), sources); err != nil {
			t.Fatal(err)
		}
	}
	check(t, path, theirs)
	if _, err := m.ChangeBans(t.Context(), nil, []detector.Ban{ban("192.0.2.9")}); err != nil {
		t.Fatal(err)
	}
	check(t, path, theirs)
}

// What an earlier run wrote with another line goes.
func TestNewLine(t *testing.T) {
	path := deny(t, before)
	for line, want := range map[string]string{"ALL: $TARGET$": "ALL: 192.0.2.7", "sshd: $TARGET$ : DENY": "sshd: 192.0.2.7 : DENY"} {
		m := configured(t, map[string]any{"file": path, "line": line})
		if _, err := m.SetBans(t.Context(), []detector.Ban{ban("192.0.2.7")}); err != nil {
			t.Fatal(err)
		}
		check(t, path, before+beginMark+"\n"+want+"\n"+endMark+"\n")
	}
}

// A line with the port that was probed is another one when the source is banned
// again.
func TestLineWithPort(t *testing.T) {
	path := deny(t, "")
	m := configured(t, map[string]any{"file": path, "line": "ALL: $TARGET$ : spawn logger $PORT$"})
	b := ban("192.0.2.7")
	for _, target := range []string{"198.51.100.1:23", "198.51.100.1:80"} {
		b.Probe.Target = netip.MustParseAddrPort(target)
		if _, err := m.ChangeBans(t.Context(), []detector.Ban{b}, nil); err != nil {
			t.Fatal(err)
		}
	}
	check(t, path, beginMark+"\nALL: 192.0.2.7 : spawn logger 80\n"+endMark+"\n")
	if _, err := m.ChangeBans(t.Context(), nil, []detector.Ban{ban("192.0.2.7")}); err != nil {
		t.Fatal(err)
	}
	check(t, path, "")
}

func TestBrokenMarks(t *testing.T) {
	text := before + beginMark + "\nALL: 192.0.2.7\n"
	path := deny(t, text)
	m := configured(t, map[string]any{"file": path})
	results, err := m.SetBans(t.Context(), []detector.Ban{ban("192.0.2.9")})
	want := `ALL: 192.0.2.9: edit ` + path + `: line 3: a begin mark without its end mark; put back the line "` + endMark + `"`
	if got := act(t, results, err); got != want {
		t.Errorf("the act is %q, want %q", got, want)
	}
	if _, err := m.ChangeBans(t.Context(), nil, []detector.Ban{ban("192.0.2.7")}); err == nil {
		t.Error("a ban is lifted from a file whose marks are broken")
	}
	check(t, path, text)
}

// Real TCP wrappers deny whoever is banned, and nobody else any more.
func TestTCPWrappersFollowTheBans(t *testing.T) {
	dir, f := newAccess(t, "")
	m := configured(t, map[string]any{"file": f.path})
	for range 2 {
		if _, err := m.SetBans(t.Context(), []detector.Ban{ban("192.0.2.7"), ban("2001:db8::/64"), ban("198.51.100.0/24")}); err != nil {
			t.Fatal(err)
		}
	}
	wantDenied(t, dir, map[string]bool{"192.0.2.7": true, "2001:db8::99": true, "198.51.100.255": true, "192.0.2.8": false, "2001:db8:0:1::1": false})
	if _, err := m.ChangeBans(t.Context(), []detector.Ban{ban("192.0.2.8")}, []detector.Ban{ban("2001:db8::/64")}); err != nil {
		t.Fatal(err)
	}
	wantDenied(t, dir, map[string]bool{"192.0.2.7": true, "2001:db8::99": false, "192.0.2.8": true})
	if _, err := m.SetBans(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	wantDenied(t, dir, map[string]bool{"192.0.2.7": false, "198.51.100.255": false})
}

func wantDenied(t *testing.T, dir string, sources map[string]bool) {
	t.Helper()
	for source, want := range sources {
		if got := denied(t, dir, source); got != want {
			t.Errorf("%s is denied: %v, want %v", source, got, want)
		}
	}
}

// Whoever can read the file can lock it: that holds up a ban, but not beyond the
// time that a call has.
func TestLockIsHeldByAnother(t *testing.T) {
	path := deny(t, before)
	file, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if err := unix.Flock(int(file.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	m := configured(t, map[string]any{"file": path})
	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	results, err := m.ChangeBans(ctx, []detector.Ban{ban("192.0.2.7")}, nil)
	if got, want := act(t, results, err), "ALL: 192.0.2.7"; got != want {
		t.Errorf("the act is %q, want %q", got, want)
	}
}

func BenchmarkChangeBans(b *testing.B) {
	path := filepath.Join(b.TempDir(), "hosts.deny")
	m := new(Module)
	if err := configure(m, map[string]any{"file": path, "create": true}); err != nil {
		b.Fatal(err)
	}
	var bans []detector.Ban
	addr := netip.MustParseAddr("198.18.0.0")
	for range 10_000 {
		bans = append(bans, detector.Ban{Source: netip.PrefixFrom(addr, 32)})
		addr = addr.Next()
	}
	if _, err := m.SetBans(b.Context(), bans); err != nil {
		b.Fatal(err)
	}
	one := []detector.Ban{{Source: netip.PrefixFrom(addr, 32)}}
	for b.Loop() {
		_, err := m.ChangeBans(b.Context(), one, nil)
		if err == nil {
			_, err = m.ChangeBans(b.Context(), nil, one)
		}
		if err != nil {
			b.Fatal(err)
		}
	}
}
