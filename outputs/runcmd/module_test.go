package runcmd

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/portsnare/portsnare/detector"
	"github.com/portsnare/portsnare/internal/nettest"
	"github.com/portsnare/portsnare/outputs/outputapi"
	"github.com/portsnare/portsnare/outputs/outputtest"
)

func TestMain(m *testing.M) {
	outputtest.Serve(newModule)
	os.Exit(m.Run())
}

func newModule() outputapi.Module { return new(Module) }

// A diary is a file to which commands write what they do.
type diary struct{ path string }

func newDiary(t *testing.T) diary { return diary{filepath.Join(t.TempDir(), "diary")} }

// writes returns a command of several arguments that writes a word and its
// source.
func (d diary) writes(word string) []string {
	return []string{"/bin/sh", "-c", `echo "$1 $2" >>"$3"`, "sh", word, "$TARGET$", d.path}
}

// shell is the same as a line of shell.
func (d diary) shell(word string) string { return fmt.Sprintf("echo %s $TARGET$ >>%s", word, d.path) }

func (d diary) read(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile(d.path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	return string(text)
}

// banned returns who was banned and not unbanned. A command that ran twice for
// the same fails the test.
func (d diary) banned(t *testing.T) []netip.Prefix {
	t.Helper()
	is := make(map[netip.Prefix]bool)
	for line := range strings.Lines(d.read(t)) {
		word, source, _ := strings.Cut(strings.TrimSpace(line), " ")
		prefix := prefixOf(source)
		if now := word == "ban"; is[prefix] == now {
			t.Fatalf("%s of %v ran twice", word, prefix)
		}
		is[prefix] = word == "ban"
	}
	var banned []netip.Prefix
	for prefix, is := range is {
		if is {
			banned = append(banned, prefix)
		}
	}
	return banned
}

func prefixOf(source string) netip.Prefix {
	if addr, err := netip.ParseAddr(source); err == nil {
		return netip.PrefixFrom(addr, addr.BitLen())
	}
	return netip.MustParsePrefix(source)
}

func TestContract(t *testing.T) {
	styles := map[string]func(d diary) map[string]any{
		"native": func(d diary) map[string]any {
			return map[string]any{"ban": d.writes("ban"), "unban": d.writes("unban")}
		},
		"PortSentry": func(d diary) map[string]any {
			return map[string]any{"route": d.shell("ban"), "unban": d.writes("unban")}
		},
	}
	for name, settings := range styles {
		t.Run(name, func(t *testing.T) {
			outputtest.Run(t, newModule, outputtest.Options{
				World: func(t *testing.T) outputtest.World {
					d := newDiary(t)
					return outputtest.World{Settings: settings(d), Banned: d.banned}
				},
				Bans: 300, // each takes a process
			})
		})
	}
}

func configure(settings map[string]any, stateDir string) (*Module, error) {
	text, err := json.Marshal(settings)
	if err != nil {
		return nil, err
	}
	m := new(Module)
	return m, m.Configure(context.Background(), outputapi.Configuration{Settings: text, StateDir: stateDir})
}

// configured returns a module that rests when the test ends.
func configured(t *testing.T, settings map[string]any, stateDir string) *Module {
	t.Helper()
	m, err := configure(settings, stateDir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(m.workers.Wait)
	return m
}

// bansOf returns bans as a trap asks for them.
func bansOf(sources ...string) []detector.Ban {
	var bans []detector.Ban
	for _, source := range sources {
		bans = append(bans, detector.Ban{Source: prefixOf(source), Probe: detector.Probe{
			Source: netip.MustParseAddrPort("192.0.2.7:40000"), Target: netip.MustParseAddrPort("198.51.100.1:23"),
			Proto: detector.TCP, Technique: detector.TechniqueConnect,
		}})
	}
	return bans
}

func set(t *testing.T, m *Module, sources ...string) []outputapi.Result {
	t.Helper()
	results, err := m.SetBans(t.Context(), bansOf(sources...))
	if err != nil {
		t.Fatal(err)
	}
	return results
}

func add(t *testing.T, m *Module, bans ...detector.Ban) []outputapi.Result {
	t.Helper()
	results, err := m.ChangeBans(t.Context(), bans, nil)
	if err != nil {
		t.Fatal(err)
	}
	return results
}

func lift(t *testing.T, m *Module, sources ...string) {
	t.Helper()
	if _, err := m.ChangeBans(t.Context(), nil, bansOf(sources...)); err != nil {
		t.Fatal(err)
	}
}

func wantDiary(t *testing.T, d diary, want string) {
	t.Helper()
	if diff := cmp.Diff(want, d.read(t)); diff != "" {
		t.Errorf("what ran (-want +got):\n%s", diff)
	}
}

func TestSettings(t *testing.T) {
	fault := func(key, text string) outputapi.Faults { return outputapi.Faults{{Key: key, Text: text}} }
	ban := []string{"/bin/true", "$TARGET$"}
	tests := map[string]struct {
		settings map[string]any
		want     outputapi.Faults
	}{
		"native":             {map[string]any{"ban": ban, "unban": ban, "concurrency": 8, "timeout": "1m30s"}, nil},
		"PortSentry":         {map[string]any{"route": "x $TARGET$", "command": "x", "command_first": true, "ignore_status": true, "command_only": []string{"udp"}, "mode": "stcp"}, nil},
		"route without":      {map[string]any{"route": "x"}, nil}, // told at each ban, as PortSentry does
		"nothing":            {nil, fault("", `there is nothing to run; set ban = ["/path/of/a/program", "$TARGET$"], or PortSentry's route or command`)},
		"unban alone":        {map[string]any{"unban": ban}, fault("", `there is nothing to run; set ban = ["/path/of/a/program", "$TARGET$"], or PortSentry's route or command`)},
		"both styles":        {map[string]any{"ban": ban, "route": "x"}, fault("route", "does not go with ban; put it into a program that ban runs")},
		"no path":            {map[string]any{"ban": []string{"true", "$TARGET$"}}, fault("ban", `"true" is no absolute path of a program, and no $PATH is searched`)},
		"names nobody":       {map[string]any{"ban": []string{"/bin/true"}}, fault("ban", ErrNoTarget.Error())},
		"stranger's program": {map[string]any{"ban": []string{"/bin/$TARGET$"}}, fault("ban", "$TARGET$ stands in the name of the program")},
		"unban is checked":   {map[string]any{"ban": ban, "unban": []string{"x"}}, fault("unban", `"x" is no absolute path of a program, and no $PATH is searched`)},
		"zero byte":          {map[string]any{"route": "x\x00 $TARGET$"}, fault("route", "holds a zero byte")},
		"command only":       {map[string]any{"command": "x", "command_only": []string{"icmp"}}, fault("command_only", `"icmp" is neither "tcp" nor "udp"`)},
		"no command":         {map[string]any{"route": "x", "command_only": []string{"tcp"}}, fault("command_only", "needs command")},
		"too many":           {map[string]any{"ban": ban, "concurrency": 65}, fault("concurrency", "65 is not from 1 to 64")},
		"no time":            {map[string]any{"ban": ban, "timeout": "90"}, fault("timeout", `"90" is no time up to 1h0m0s; write it as "30s" or "1m30s"`)},
		"too long":           {map[string]any{"ban": ban, "timeout": "2h"}, fault("timeout", `"2h" is no time up to 1h0m0s; write it as "30s" or "1m30s"`)},
		"mode":               {map[string]any{"ban": ban, "mode": "x"}, fault("mode", `"x" is no mode`)},
		"one text":           {map[string]any{"ban": "/bin/true $TARGET$"}, fault("ban", "string where []string is wanted")},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			_, err := configure(tt.settings, "")
			faults, ok := errors.AsType[outputapi.Faults](err)
			if diff := cmp.Diff(tt.want, faults); diff != "" || (err != nil) != ok {
				t.Errorf("Configure(%v) = %v (-want +got):\n%s", tt.settings, err, diff)
			}
		})
	}
}

// told is what results tell of, one line an act.
func told(results []outputapi.Result) string {
	var text strings.Builder
	kinds := map[detector.ActKind]string{detector.ActRoute: "route", detector.ActCommand: "command"}
	for _, r := range results {
		for _, act := range r.Acts {
			fmt.Fprintf(&text, "%s: %s (%v)\n", kinds[act.Kind], act.Text, act.Err)
		}
		fmt.Fprintf(&text, "%v\n", r.Err)
	}
	return text.String()
}

func TestActs(t *testing.T) {
	tcp, udp := bansOf("192.0.2.7")[0], bansOf("192.0.2.7")[0]
	udp.Probe.Proto, udp.Probe.Technique = detector.UDP, detector.TechniqueUDP
	order := detector.Ban{Source: tcp.Source, Origin: "operator"}
	tests := map[string]struct {
		settings map[string]any
		ban      detector.Ban
		want     string
	}{
		"route, then command": {
			map[string]any{"route": ": $TARGET$ $MODE$", "command": ": $PORT$"},
			tcp,
			"route: : 192.0.2.7 connect (<nil>)\ncommand: : 23 (<nil>)\n<nil>\n",
		},
		"command first": {
			map[string]any{"route": ": $TARGET$ $MODE$", "command": ": $PORT$", "command_first": true},
			udp,
			"command: : 23 (<nil>)\nroute: : 192.0.2.7 stealth (<nil>)\n<nil>\n",
		},
		"command alone bans":   {map[string]any{"command": ": $PORT$"}, tcp, "command: : 23 (<nil>)\n<nil>\n"},
		"command only":         {map[string]any{"route": ": $TARGET$", "command": ":", "command_only": []string{"udp"}}, udp, "command: : (<nil>)\n<nil>\n"},
		"not for the operator": {map[string]any{"route": ": $TARGET$ $PORT$ $MODE$", "command": ":", "command_only": []string{"tcp"}}, order, "route: : 192.0.2.7 0 unknown (<nil>)\ncommand: : (<nil>)\n<nil>\n"},
		"word of 1.2":          {map[string]any{"route": ": $TARGET$ $MODE$", "mode": "atcp"}, tcp, "route: : 192.0.2.7 atcp (<nil>)\n<nil>\n"},
		"route fails": {
			map[string]any{"route": "exit 3; $TARGET$", "command": ":"},
			tcp,
			"route: exit 3; 192.0.2.7 (\"exit 3; 192.0.2.7\": command failed: exit status 3)\ncommand: : (<nil>)\n\"exit 3; 192.0.2.7\": command failed: exit status 3\n",
		},
		"command fails": {
			map[string]any{"route": ": $TARGET$", "command": "echo a; echo b >&2; exit 3"},
			tcp,
			"route: : 192.0.2.7 (<nil>)\ncommand: echo a; echo b >&2; exit 3 (\"echo a; echo b >&2; exit 3\": command failed: exit status 3: b)\n<nil>\n",
		},
		"status ignored": {map[string]any{"route": "exit 3; $TARGET$", "ignore_status": true}, tcp, "route: exit 3; 192.0.2.7 (<nil>)\n<nil>\n"},
		"no target":      {map[string]any{"route": "exit"}, tcp, "route: exit (no $TARGET$ in it)\nno $TARGET$ in it\n"},
		"native":         {map[string]any{"ban": []string{"/bin/true", "$TARGET$ $PORT$;id"}}, tcp, "route: /bin/true 192.0.2.7 23;id (<nil>)\n<nil>\n"},
		"no program": {
			map[string]any{"ban": []string{"/no/such", "$TARGET$"}},
			tcp,
			"route: /no/such 192.0.2.7 (\"/no/such 192.0.2.7\": start command: fork/exec /no/such: no such file or directory)\n\"/no/such 192.0.2.7\": start command: fork/exec /no/such: no such file or directory\n",
		},
		"takes too long": {
			map[string]any{"ban": []string{"/bin/sh", "-c", "sleep 1000", "$TARGET$"}, "timeout": "20ms"},
			tcp,
			"route: /bin/sh -c sleep 1000 192.0.2.7 (\"/bin/sh -c sleep 1000 192.0.2.7\": command took longer than 20ms and was ended)\n\"/bin/sh -c sleep 1000 192.0.2.7\": command took longer than 20ms and was ended\n",
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			m := configured(t, tt.settings, "")
			if diff := cmp.Diff(tt.want, told(add(t, m, tt.ban))); diff != "" {
				t.Errorf("results (-want +got):\n%s", diff)
			}
		})
	}
}

// Arguments stay arguments, and the environment is one that programs are found in.
func TestNoShell(t *testing.T) {
	d := newDiary(t)
	m := configured(t, map[string]any{
		"ban":   []string{"/bin/sh", "-c", `printf '%s\n' "$PATH" "$#" "$1" "$2" >"$3"`, "sh", "a b; $TARGET$", "$(id)", d.path},
		"unban": d.writes("unban"),
	}, "")
	add(t, m, bansOf("192.0.2.7")...)
	wantDiary(t, d, strings.TrimPrefix(environment[0], "PATH=")+"\n3\na b; 192.0.2.7\n$(id)\n")
}

// A ban that failed is none: the next one runs its commands again, and nothing
// is lifted.
func TestFailedBan(t *testing.T) {
	d := newDiary(t)
	m := configured(t, map[string]any{"route": d.shell("ban") + "; test -e " + d.path + ".ok", "unban": d.writes("unban")}, "")
	if results := add(t, m, bansOf("192.0.2.7")...); results[0].Err == nil {
		t.Error("a ban whose command failed is in force")
	}
	lift(t, m, "192.0.2.7")
	if err := os.WriteFile(d.path+".ok", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if results := add(t, m, bansOf("192.0.2.7")...); results[0].Err != nil {
		t.Error(results[0].Err)
	}
	wantDiary(t, d, "ban 192.0.2.7\nban 192.0.2.7\n")
}

// After an unban that failed nobody knows whether the ban is in force. The next
// ban runs its command; a new statement of all bans lifts it again.
func TestFailedUnban(t *testing.T) {
	d := newDiary(t)
	failing := append(d.writes("unban"), "")
	failing[2] += "; exit 1"
	m := configured(t, map[string]any{"ban": d.writes("ban"), "unban": failing}, t.TempDir())
	add(t, m, bansOf("192.0.2.7")...)
	lift(t, m, "192.0.2.7")
	add(t, m, bansOf("192.0.2.7")...)
	wantDiary(t, d, "ban 192.0.2.7\nunban 192.0.2.7\nban 192.0.2.7\n")
	set(t, m)
	set(t, m)
	wantDiary(t, d, "ban 192.0.2.7\nunban 192.0.2.7\nban 192.0.2.7\nunban 192.0.2.7\nunban 192.0.2.7\n")
}

func TestConcurrency(t *testing.T) {
	for concurrency, style := range map[int]string{1: "route", 3: "ban"} {
		t.Run(style, func(t *testing.T) {
			// Each command counts those that run, and waits until there is company.
			dir := t.TempDir()
			script := fmt.Sprintf(`mkdir "$1/$2"; ls "$1" | wc -l >>"$1.counts"; n=0
				while test ! -e "$1.full" -a $n -lt 500; do
					test $(ls "$1" | wc -l) -ge %d && : >"$1.full"; sleep 0.01; n=$((n+1))
				done; rmdir "$1/$2"`, concurrency)
			settings := map[string]any{"ban": []string{"/bin/sh", "-c", script, "sh", dir, "$TARGET$"}, "concurrency": concurrency}
			if style == "route" {
				settings = map[string]any{"route": "set " + dir + " $TARGET$; " + script} // one by default
			}
			m := configured(t, settings, "")
			for _, r := range add(t, m, bansOf("192.0.2.1", "192.0.2.2", "192.0.2.3", "192.0.2.4", "192.0.2.5", "192.0.2.6")...) {
				if r.Err != nil {
					t.Fatal(r.Err)
				}
			}
			text, err := os.ReadFile(dir + ".counts")
			if err != nil {
				t.Fatal(err)
			}
			most := "0"
			for count := range strings.FieldsSeq(string(text)) {
				most = max(most, count)
			}
			if most != fmt.Sprint(concurrency) {
				t.Errorf("%s commands ran at a time, want %d", most, concurrency)
			}
		})
	}
}

// gate is a command that writes to the diary once a file is there.
func (d diary) gate(word string) []string {
	args := d.writes(word)
	args[2] = `: >"$3.began"; until test -e "$3.open"; do sleep 0.01; done; ` + args[2]
	return args
}

func (d diary) open(t *testing.T) {
	t.Helper()
	if err := os.WriteFile(d.path+".open", nil, 0o600); err != nil {
		t.Fatal(err)
	}
}

// Who asked and gave up does not know of the ban, so it is lifted, and those that
// have not begun never begin.
func TestChangeBansRunsOutOfTime(t *testing.T) {
	d := newDiary(t)
	m := configured(t, map[string]any{"ban": d.gate("ban"), "unban": d.writes("unban"), "concurrency": 1}, "")
	ctx, cancel := context.WithCancel(t.Context())
	answered := make(chan error, 1)
	go func() {
		_, err := m.ChangeBans(ctx, bansOf("192.0.2.1", "192.0.2.2"), nil)
		answered <- err
	}()
	nettest.WaitFor(t, "the command to begin", func() bool { return exists(d.path + ".began") })
	cancel()
	if err := <-answered; !errors.Is(err, context.Canceled) {
		t.Errorf("ChangeBans = %v, want %v", err, context.Canceled)
	}
	d.open(t)
	if err := m.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	wantDiary(t, d, "ban 192.0.2.1\nunban 192.0.2.1\n")
}

// A statement that took too long is made again, and finds done what was done
// meanwhile.
func TestSetBansRunsOutOfTime(t *testing.T) {
	d := newDiary(t)
	m := configured(t, map[string]any{"ban": d.gate("ban"), "unban": d.writes("unban"), "concurrency": 1}, "")
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := m.SetBans(ctx, bansOf("192.0.2.1", "192.0.2.2")); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("SetBans = %v, want %v", err, context.DeadlineExceeded)
	}
	if err := m.Flush(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Flush with a command that runs = %v, want %v", err, context.DeadlineExceeded)
	}
	d.open(t)
	set(t, m, "192.0.2.1", "192.0.2.2")
	wantDiary(t, d, "ban 192.0.2.1\nban 192.0.2.2\n")
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

func TestOutputIsBounded(t *testing.T) {
	var h head
	for range 10 {
		if n, err := h.Write([]byte(strings.Repeat("x", 1000))); n != 1000 || err != nil {
			t.Fatalf("Write = %d, %v", n, err)
		}
	}
	if got := len(h.String()); got != maxOutput {
		t.Errorf("%d bytes are kept, want %d", got, maxOutput)
	}
	m := configured(t, map[string]any{"command": "yes; exit 1", "timeout": "100ms"}, "")
	results := add(t, m, bansOf("192.0.2.7")...)
	if results[0].Err == nil || len(results[0].Err.Error()) > 500 {
		t.Errorf("error %v, want a short one", results[0].Err)
	}
}
