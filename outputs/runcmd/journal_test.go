package runcmd

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"golang.org/x/sys/unix"
)

var comparePrefixes = cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })

// rebooted makes a journal look as if it were of an earlier boot.
func rebooted(t *testing.T, dir string) {
	t.Helper()
	path := filepath.Join(dir, "bans")
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	_, records, _ := strings.Cut(string(text), "\n")
	if err := os.WriteFile(path, []byte(`{"epoch":"earlier"}`+"\n"+records), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestRestart(t *testing.T) {
	d, dir := newDiary(t), t.TempDir()
	settings := map[string]any{"route": d.shell("ban"), "command": d.shell("tell"), "unban": d.writes("unban")}
	first := configured(t, settings, dir)
	set(t, first, "192.0.2.1", "192.0.2.2")
	add(t, first, bansOf("2001:db8::/64")...)
	want := "ban 192.0.2.1\ntell 192.0.2.1\nban 192.0.2.2\ntell 192.0.2.2\nban 2001:db8::/64\ntell 2001:db8::/64\n"
	wantDiary(t, d, want)

	// Nothing runs for whom it has run; what ended meanwhile is lifted.
	second := configured(t, settings, dir)
	set(t, second, "192.0.2.1", "2001:db8::/64")
	want += "unban 192.0.2.2\n"
	wantDiary(t, d, want)

	// After the machine was down its rules are gone, but who was told of a ban need
	// not be told again.
	rebooted(t, dir)
	third := configured(t, settings, dir)
	set(t, third, "192.0.2.1")
	want += "ban 192.0.2.1\n"
	wantDiary(t, d, want)

	// Of a ban that comes later, they are.
	fourth := configured(t, settings, dir)
	add(t, fourth, bansOf("2001:db8::/64")...)
	want += "ban 2001:db8::/64\ntell 2001:db8::/64\n"
	wantDiary(t, d, want)
}

// A command that is all that bans runs again after a restart of the machine.
func TestRestartOfCommandAlone(t *testing.T) {
	d, dir := newDiary(t), t.TempDir()
	settings := map[string]any{"command": d.shell("ban")}
	set(t, configured(t, settings, dir), "192.0.2.1")
	set(t, configured(t, settings, dir), "192.0.2.1")
	wantDiary(t, d, "ban 192.0.2.1\n")
	rebooted(t, dir)
	set(t, configured(t, settings, dir), "192.0.2.1")
	wantDiary(t, d, "ban 192.0.2.1\nban 192.0.2.1\n")
}

// What lifts a ban is the command that belongs to the one that made it.
func TestCommandsChange(t *testing.T) {
	d, dir := newDiary(t), t.TempDir()
	set(t, configured(t, map[string]any{"ban": d.writes("ban"), "unban": d.writes("unban")}, dir), "192.0.2.1")
	changed := configured(t, map[string]any{"ban": d.writes("block"), "unban": d.writes("unblock"), "concurrency": 1}, dir)
	set(t, changed, "192.0.2.1", "192.0.2.2")
	lift(t, changed, "192.0.2.1", "192.0.2.2")
	wantDiary(t, d, "ban 192.0.2.1\nblock 192.0.2.2\nunban 192.0.2.1\nunblock 192.0.2.2\n")
}

// An unban command that was added later lifts earlier bans, too.
func TestUnbanIsAdded(t *testing.T) {
	d, dir := newDiary(t), t.TempDir()
	set(t, configured(t, map[string]any{"ban": d.writes("ban")}, dir), "192.0.2.1")
	set(t, configured(t, map[string]any{"ban": d.writes("ban"), "unban": d.writes("unban")}, dir))
	wantDiary(t, d, "ban 192.0.2.1\nunban 192.0.2.1\n")
}

func TestJournalStaysShort(t *testing.T) {
	dir := t.TempDir()
	j, _, err := openJournal(dir)
	if err != nil {
		t.Fatal(err)
	}
	m := Module{journal: j, sources: map[netip.Prefix]*source{}}
	kept := &source{tokens: Tokens{Source: prefixOf("192.0.2.1")}, hold: held}
	m.sources[kept.tokens.Source] = kept
	m.noteLocked(kept)
	gone := &source{tokens: Tokens{Source: prefixOf("192.0.2.2")}}
	for range 5 * slack {
		m.noteLocked(gone)
	}
	if j.fault || j.lines > slack+3 {
		t.Errorf("%d lines, fault %v", j.lines, j.fault)
	}
	_, records, err := openJournal(dir)
	want := map[netip.Prefix]record{kept.tokens.Source: {Source: kept.tokens.Source, Held: true}}
	if diff := cmp.Diff(want, records, comparePrefixes); err != nil || diff != "" {
		t.Errorf("%v (-want +got):\n%s", err, diff)
	}
}

// A journal that cannot be written is no reason not to ban.
func TestJournalIsGone(t *testing.T) {
	d, dir := newDiary(t), t.TempDir()
	m := configured(t, map[string]any{"ban": d.writes("ban")}, dir)
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	if results := add(t, m, bansOf("192.0.2.7")...); results[0].Err != nil {
		t.Errorf("a ban fails: %v", results[0].Err)
	}
	if _, err := configure(map[string]any{"ban": d.writes("ban")}, dir); !errors.Is(err, unix.ENOENT) {
		t.Errorf("Configure with a state directory that is not there = %v", err)
	}
}

func TestParseJournal(t *testing.T) {
	one, two := prefixOf("192.0.2.1"), prefixOf("2001:db8::/64")
	const head = `{"epoch":"now"}` + "\n"
	tests := map[string]struct {
		text string
		want map[netip.Prefix]record
	}{
		"empty":          {"", nil},
		"no journal":     {"x\n" + `{"source":"192.0.2.1/32","held":true}` + "\n", nil},
		"last one holds": {head + `{"source":"192.0.2.1/32","held":true}` + "\n" + `{"source":"192.0.2.1/32"}` + "\n" + `{"source":"2001:db8::/64","told":true}`, map[netip.Prefix]record{two: {Source: two, Told: true}}},
		"unfinished": {
			head + `{"source":"192.0.2.1/32","held":true,"undo":["/x","y"]}` + "\n" + `{"source":"2001:db8`,
			map[netip.Prefix]record{one: {Source: one, Held: true, Undo: []string{"/x", "y"}}},
		},
		"earlier": {
			`{"epoch":"then"}` + "\n" + `{"source":"192.0.2.1/32","held":true,"undo":["/x"]}` + "\n" + `{"source":"2001:db8::/64","held":true,"told":true}` + "\n",
			map[netip.Prefix]record{two: {Source: two, Told: true}},
		},
		"no source": {head + `{"held":true}`, nil},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			got := parseJournal([]byte(tt.text), "now")
			if diff := cmp.Diff(tt.want, got, comparePrefixes, cmpopts.EquateEmpty()); diff != "" {
				t.Errorf("parseJournal(%q) (-want +got):\n%s", tt.text, diff)
			}
		})
	}
}

// What is read from a journal is what is written to the next.
func FuzzJournal(f *testing.F) {
	f.Add([]byte(`{"epoch":"now"}` + "\n" + `{"source":"192.0.2.1/32","held":true,"told":true,"undo":["/x","y"]}` + "\n"))
	f.Add([]byte(`{"epoch":"then"}` + "\n" + `{"source":"2001:db8::/64","told":true}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		records := parseJournal(text, "now")
		again := `{"epoch":"now"}` + "\n"
		for _, r := range records {
			line, err := json.Marshal(r)
			if err != nil {
				t.Fatal(err)
			}
			again += fmt.Sprintf("%s\n", line)
		}
		got := parseJournal([]byte(again), "now")
		if diff := cmp.Diff(records, got, comparePrefixes, cmpopts.EquateEmpty()); diff != "" || !maps.EqualFunc(records, got, func(a, b record) bool { return a.Source == b.Source }) {
			t.Errorf("%q is read as %v, and then as %v", text, records, got)
		}
	})
}
