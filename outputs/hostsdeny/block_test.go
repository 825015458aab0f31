package hostsdeny

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// block is the text of our block with lines in it.
func block(lines ...string) string {
	return strings.Join(slices.Concat([]string{beginMark}, lines, []string{endMark}), "\n") + "\n"
}

func TestChange(t *testing.T) {
	tests := map[string]struct {
		text        string
		keep        []string
		add         []string
		want        string
		wantPresent []bool
	}{
		"first ban":                 {text: "a\n", add: []string{"x"}, want: "a\n" + block("x"), wantPresent: []bool{false}},
		"empty file":                {add: []string{"x", "y"}, want: block("x", "y"), wantPresent: []bool{false, false}},
		"no newline at the end":     {text: "a", add: []string{"x"}, want: "a\n" + block("x"), wantPresent: []bool{false}},
		"goes on at the end":        {text: "a \\\n", add: []string{"x"}, want: "a \\\n\n" + block("x"), wantPresent: []bool{false}},
		"a further one":             {text: "a\n" + block("x") + "b\n", keep: []string{"x"}, add: []string{"y"}, want: "a\n" + block("x", "y") + "b\n", wantPresent: []bool{false}},
		"one is over":               {text: block("x", "y"), keep: []string{"y"}, want: block("y")},
		"the last one is over":      {text: "a\n" + block("x") + "b\n", want: "a\nb\n"},
		"a block of nothing":        {text: "a\n" + block() + "b", want: "a\nb"},
		"nothing to do":             {text: "a \\\n\n", want: "a \\\n\n"},
		"order stays":               {text: block("z", "x"), keep: []string{"x", "z"}, add: []string{"x", "y", "z"}, want: block("z", "x", "y"), wantPresent: []bool{true, false, true}},
		"twice in one call":         {add: []string{"x", "x"}, want: block("x"), wantPresent: []bool{false, true}},
		"twice in the block":        {text: block("x", "x"), keep: []string{"x"}, want: block("x")},
		"before the block as well":  {text: "x\n" + block("x", "y"), keep: []string{"x", "y"}, want: "x\n" + block("y")},
		"behind the block":          {text: block("y") + "x\n", keep: []string{"y"}, add: []string{"x"}, want: block("y") + "x\n", wantPresent: []bool{true}},
		"a rule that has no end":    {text: "x", add: []string{"x"}, want: "x\n" + block("x"), wantPresent: []bool{false}},
		"a rule that goes on":       {text: block("x \\\ny"), keep: []string{"y"}, add: []string{"y"}, want: block("y"), wantPresent: []bool{false}},
		"marks of another version":  {text: "# Portsnare: begin 2\nx\n# Portsnare: end 2\n", keep: []string{"x"}, want: block("x")},
		"a mark in a longer rule":   {text: "a \\\n" + beginMark + "\n", add: []string{"x"}, want: "a \\\n" + beginMark + "\n" + block("x"), wantPresent: []bool{false}},
		"the block was moved to us": {text: block("x") + "a\n", add: []string{"y"}, want: block("y") + "a\n", wantPresent: []bool{false}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			d, err := parse([]byte(tt.text))
			if err != nil {
				t.Fatal(err)
			}
			outcomes := d.change(func(line string) bool { return slices.Contains(tt.keep, line) }, tt.add)
			var present []bool
			for _, o := range outcomes {
				present = append(present, o.present)
			}
			if diff := cmp.Diff(tt.wantPresent, present); diff != "" {
				t.Errorf("present (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(tt.want, string(d.bytes())); diff != "" {
				t.Errorf("text (-want +got):\n%s", diff)
			}
		})
	}
}

func TestParseRefuses(t *testing.T) {
	begin, end := beginMark+"\n", endMark+"\n"
	tests := map[string]struct{ text, want string }{
		"no end":          {"a\n" + begin + "x\n", `line 2: a begin mark without its end mark; put back the line "` + endMark + `"`},
		"end hidden":      {begin + "x \\\n" + end, `line 1: a begin mark without its end mark; put back the line "` + endMark + `"`},
		"no begin":        {"a \\\nb\n" + end, "line 3: an end mark without its begin mark; remove it"},
		"two blocks":      {begin + end + begin + end, "line 3: a second begin mark; remove one of the two blocks"},
		"two begin marks": {begin + begin + end, "line 2: a second begin mark; remove one of the two blocks"},
		"two end marks":   {begin + end + end, "line 3: an end mark without its begin mark; remove it"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			if _, err := parse([]byte(tt.text)); err == nil || err.Error() != tt.want {
				t.Errorf("parse(%q) = %v, want %s", tt.text, err, tt.want)
			}
		})
	}
}

// Who is banned last finds no room; the bans before are in force.
func TestFileIsFull(t *testing.T) {
	comment := "#" + strings.Repeat(" ", 126) + "\n"
	d := document{before: []byte(strings.Repeat(comment, maxSize/len(comment)-3))}
	var add []string
	for i := range 20 {
		add = append(add, fmt.Sprintf("ALL: 192.0.2.%d", i))
	}
	outcomes := d.change(func(string) bool { return true }, add)
	if outcomes[0].err != nil || outcomes[19].err == nil {
		t.Errorf("the first line: %v, the last: %v; want an error for the last", outcomes[0].err, outcomes[19].err)
	}
	if n := len(d.bytes()); n > maxSize || len(d.block) == 0 {
		t.Errorf("%d bytes with %d lines of ours, the limit is %d", n, len(d.block), maxSize)
	}
}

// Whatever is in the file besides our block stays, bans or no bans.
func FuzzBlock(f *testing.F) {
	for _, tt := range edits {
		f.Add([]byte(tt.text), rule)
		f.Add([]byte(tt.text+"\n\n"+block(rule)+tt.text), rule)
	}
	f.Fuzz(func(t *testing.T, text []byte, line string) {
		if checkLine(line) != nil || strings.HasPrefix(line, "#") {
			return
		}
		original := slices.Clone(text)
		d, err := parse(text)
		if err != nil {
			return
		}
		before, after := slices.Clone(d.before), slices.Clone(d.after)
		there := d.others()[line]
		d.change(func(string) bool { return false }, []string{line})
		banned := d.bytes()
		if !bytes.Equal(text, original) {
			t.Fatalf("the text given was changed from %q to %q", original, text)
		}
		again, err := parse(banned)
		if err != nil {
			t.Fatalf("with %q, %q became %q: %v", line, original, banned, err)
		}
		if there { // so there is no block
			before, after = slices.Concat(before, after), nil
		}
		rest, kept := bytes.CutPrefix(again.before, before)
		if !kept || len(bytes.Trim(rest, "\n")) > 0 || len(rest) > 2 || !bytes.Equal(after, again.after) {
			t.Fatalf("with %q, %q became %q", line, original, banned)
		}
		if want := map[bool]int{true: 0, false: 1}[there]; len(again.block) != want {
			t.Fatalf("with %q, %q became %q, of which %q are ours", line, original, banned, again.block)
		}
	})
}
