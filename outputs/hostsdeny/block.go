package hostsdeny

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
)

// Our lines stand between two comments, as TCP wrappers know no comment behind a
// rule: without them, a rule of the administrator's for a source that we ban
// could not be told from ours. The block is made at the end of the file and stays
// where it is moved to.
const (
	beginMark = "# Portsnare: begin of its bans. What is between the marks is rewritten."
	endMark   = "# Portsnare: end of its bans."

	// What a mark is known by.
	beginWord = "# Portsnare: begin "
	endWord   = "# Portsnare: end "
)

// A document is the text of a hosts.deny, in parts.
type document struct {
	before, after []byte
	block         []string // our lines, without newlines
}

// parse finds our block. Where one mark is missing or there are more than two,
// nobody can say what is ours, and then nothing is done.
func parse(text []byte) (document, error) {
	var (
		d     document
		at    int // after the rule
		line  = 1 // of the rule
		begin int // the line of the mark, 0 before it
		ended bool
	)
	for rule := range rules(text) {
		at += len(rule)
		switch first, _, _ := strings.Cut(string(rule), "\n"); {
		case strings.HasPrefix(first, beginWord):
			if begin > 0 {
				return d, errMarks(line, "a second begin mark; remove one of the two blocks")
			}
			begin = line
			d.before = text[: at-len(rule) : at-len(rule)]
		case strings.HasPrefix(first, endWord):
			if begin == 0 || ended {
				return d, errMarks(line, "an end mark without its begin mark; remove it")
			}
			ended = true
			d.after = text[at:]
		case begin > 0 && !ended:
			d.block = append(d.block, strings.TrimSuffix(string(rule), "\n"))
		}
		line += bytes.Count(rule, []byte("\n"))
	}
	switch {
	case begin == 0:
		d.before = slices.Clip(text)
	case !ended:
		return d, errMarks(begin, fmt.Sprintf("a begin mark without its end mark; put back the line %q", endMark))
	}
	return d, nil
}

func errMarks(line int, fault string) error { return fmt.Errorf("line %d: %s", line, fault) }

// bytes returns the text. There are marks only if there are lines of ours.
func (d *document) bytes() []byte {
	if len(d.block) == 0 {
		return slices.Concat(d.before, d.after)
	}
	text := slices.Clone(d.before)
	for len(text) > 0 && !whole(lastLine(text)) {
		text = append(text, '\n')
	}
	for _, line := range slices.Concat([]string{beginMark}, d.block, []string{endMark}) {
		text = append(append(text, line...), '\n')
	}
	return append(text, d.after...)
}

// size returns at least how long bytes is.
func (d *document) size() int {
	n := len(d.before) + len("\n\n") + len(beginMark) + len(endMark) + len("\n\n") + len(d.after)
	for _, line := range d.block {
		n += len(line) + len("\n")
	}
	return n
}

// others returns the rules that are not ours.
func (d *document) others() map[string]bool {
	others := make(map[string]bool)
	for _, text := range [][]byte{d.before, d.after} {
		for rule := range rules(text) {
			if line, ended := bytes.CutSuffix(rule, []byte("\n")); ended {
				others[string(line)] = true
			}
		}
	}
	return others
}

// An outcome is what became of a line to be added.
type outcome struct {
	present bool // it was there
	err     error
}

// change takes the lines out of the block that are not to be kept, and adds
// others, unless they are there: then perhaps as a rule of the administrator's,
// which stays when the ban ends.
func (d *document) change(keep func(line string) bool, add []string) []outcome {
	present := d.others()
	var block []string
	for _, line := range d.block {
		if keep(line) && !present[line] {
			block = append(block, line)
			present[line] = true
		}
	}
	d.block = block
	size := d.size()
	outcomes := make([]outcome, len(add))
	for i, line := range add {
		o := &outcomes[i]
		switch o.present = present[line]; {
		case o.present:
		case size+len(line)+len("\n") > maxSize:
			o.err = errTooLarge
		default:
			d.block = append(d.block, line)
			present[line] = true
			size += len(line) + len("\n")
		}
	}
	return outcomes
}

// setLines makes lines all that there are in our block. It returns what became
// of each.
func (f *File) setLines(ctx context.Context, lines []string) ([]outcome, error) {
	wanted := make(map[string]bool, len(lines))
	for _, line := range lines {
		wanted[line] = true
	}
	return f.change(ctx, func(line string) bool { return wanted[line] }, lines)
}

// changeLines takes the lines of remove out of our block, unless they are to be
// added, and adds others. It returns what became of each that was to be added.
func (f *File) changeLines(ctx context.Context, add, remove []string) ([]outcome, error) {
	unwanted := make(map[string]bool, len(remove))
	for _, line := range remove {
		unwanted[line] = true
	}
	for _, line := range add {
		delete(unwanted, line)
	}
	return f.change(ctx, func(line string) bool { return !unwanted[line] }, add)
}

// change edits our block. All lines are to have passed checkLine.
func (f *File) change(ctx context.Context, keep func(line string) bool, add []string) (outcomes []outcome, err error) {
	if f.create && len(add) > 0 {
		if err := makeEmpty(f.path); err != nil {
			return nil, fmt.Errorf("create hosts.deny: %w", err)
		}
	}
	var fault error
	err = f.edit(ctx, func(text []byte) []byte {
		var d document
		if d, fault = parse(text); fault != nil {
			return text
		}
		outcomes = d.change(keep, add)
		return d.bytes()
	})
	switch {
	case len(add) == 0 && errors.As(err, new(refusal)) && errors.Is(err, fs.ErrNotExist):
		return nil, nil // nothing is there to be taken out
	case err != nil:
		return nil, err
	case fault != nil:
		return nil, fmt.Errorf("edit %s: %w", f.path, fault)
	}
	return outcomes, nil
}
