package hostsdeny

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"

	"github.com/portsnare/portsnare/detector"
	"github.com/portsnare/portsnare/internal/version"
	"github.com/portsnare/portsnare/outputs/outputapi"
	"github.com/portsnare/portsnare/outputs/runcmd"
)

var (
	_ outputapi.Module    = (*Module)(nil)
	_ outputapi.BanKeeper = (*Module)(nil)
)

// A Module keeps a line in hosts.deny for each ban. Its zero value is ready to be
// configured. All its lines stand between two marks and nothing else does, so
// that it knows them again after a restart; a ban is one rewrite of the file, and
// so are ten thousand.
//
// A line that is a rule outside the marks already, such as one that PortSentry
// wrote, is not added, and not removed when the ban ends.
type Module struct {
	settings settings
	file     *File
	lines    map[netip.Prefix]string // of the bans in force, as far as they are known
}

// settings are those of the module's block.
type settings struct {
	Line   string `json:"line"`   // for a ban: KILL_HOSTS_DENY
	File   string `json:"file"`   // to edit
	Create bool   `json:"create"` // the file if it is missing, which else is an error
	Mode   string `json:"mode"`   // the word for $MODE$; empty: stealth or connect, by the probe

	mode runcmd.Mode
}

// Info says what the module is.
func (m *Module) Info() outputapi.Info {
	return outputapi.Info{
		Name:         "hostsdeny",
		Version:      version.String(),
		Summary:      "denies banned sources the services of TCP wrappers, in /etc/hosts.deny",
		Capabilities: []string{"dac_override"},
	}
}

// Configure takes the settings. It does not look at the file, which may come
// later.
func (m *Module) Configure(_ context.Context, c outputapi.Configuration) error {
	s, err := readSettings(c)
	if err != nil {
		return err
	}
	m.settings = s
	m.file = New(s.File, s.Create)
	m.lines = make(map[netip.Prefix]string)
	return nil
}

// readSettings returns the settings with their defaults. The error is of type
// [outputapi.Faults].
func readSettings(c outputapi.Configuration) (settings, error) {
	s := settings{Line: "ALL: $TARGET$", File: "/etc/hosts.deny"}
	if err := c.Decode(&s); err != nil {
		return settings{}, err
	}
	var faults outputapi.Faults
	if !filepath.IsAbs(s.File) {
		faults = append(faults, outputapi.Fault{Key: "file", Text: fmt.Sprintf("%q is no absolute path", s.File)})
	}
	if err := checkTemplate(s.Line); err != nil {
		faults = append(faults, outputapi.Fault{Key: "line", Text: err.Error()})
	}
	if s.Mode != "" {
		var err error
		if s.mode, err = runcmd.ParseMode(s.Mode); err != nil {
			faults = append(faults, outputapi.Fault{Key: "mode", Text: err.Error()})
		}
	}
	if len(faults) > 0 {
		return settings{}, faults
	}
	return s, nil
}

// checkTemplate says why no line can be made of a template. One that names no
// source passes, as it does in PortSentry, which then says so at each ban.
func checkTemplate(template string) error {
	longest := netip.MustParsePrefix("2001:db8:1111:1111:1111:1111:1111:1100/120")
	line, err := Line(template, runcmd.Tokens{Source: longest, Port: 65535})
	if errors.Is(err, runcmd.ErrNoTarget) {
		line = template
	} else if err != nil {
		return err
	}
	if strings.HasPrefix(line, "#") {
		return fmt.Errorf("%q is a comment, which keeps nobody out", template)
	}
	return checkLine(line)
}

// SetBans makes the lines of bans all that are between the marks.
func (m *Module) SetBans(ctx context.Context, bans []detector.Ban) ([]outputapi.Result, error) {
	b := m.newBatch(bans)
	outcomes, err := m.file.setLines(ctx, b.lines)
	if err == nil {
		clear(m.lines)
	}
	return m.finish(b, outcomes, err)
}

// ChangeBans takes out the lines of remove and adds those of add.
func (m *Module) ChangeBans(ctx context.Context, add, remove []detector.Ban) ([]outputapi.Result, error) {
	b := m.newBatch(add)
	sources := slices.Clone(b.sources) // of which each has one line, the new one
	for i := range remove {
		if source, err := runcmd.Source(remove[i].Source); err == nil {
			sources = append(sources, source)
		}
	}
	var old []string
	for _, source := range sources {
		line, known := m.lines[source]
		if !known {
			line, _ = Line(m.settings.Line, runcmd.Tokens{Source: source}) // without one, there is none
		}
		old = append(old, line)
	}
	outcomes, err := m.file.changeLines(ctx, b.lines, old)
	if err == nil {
		for _, source := range sources {
			delete(m.lines, source)
		}
	}
	return m.finish(b, outcomes, err)
}

// A batch is what one call adds: a result for each ban, and of those that have a
// line what it is.
type batch struct {
	results []outputapi.Result

	lines   []string
	sources []netip.Prefix // of lines
	index   []int          // of the result of lines
}

// newBatch makes the lines of bans. A ban that has none fails.
func (m *Module) newBatch(bans []detector.Ban) *batch {
	b := &batch{results: make([]outputapi.Result, len(bans))}
	for i := range bans {
		tokens, err := runcmd.TokensOf(&bans[i], m.settings.mode)
		line := m.settings.Line
		if err == nil {
			line, err = Line(line, tokens)
		}
		if errors.Is(err, runcmd.ErrNoTarget) {
			err = detector.ErrNoTarget
		}
		if err != nil {
			b.results[i] = resultOf(m.settings.Line, outcome{err: err})
			continue
		}
		b.lines, b.sources, b.index = append(b.lines, line), append(b.sources, tokens.Source), append(b.index, i)
	}
	return b
}

// finish enters in the results what became of the lines: outcomes, or the error
// that all have in common. With nothing to add, that is the call's.
func (m *Module) finish(b *batch, outcomes []outcome, err error) ([]outputapi.Result, error) {
	if len(b.results) == 0 {
		return nil, err
	}
	for i, line := range b.lines {
		o := outcome{err: err}
		if err == nil {
			o = outcomes[i]
		}
		b.results[b.index[i]] = resultOf(line, o)
		if o.err == nil {
			m.lines[b.sources[i]] = line
		}
	}
	return b.results, nil
}

func resultOf(line string, o outcome) outputapi.Result {
	return outputapi.Result{
		Err:  o.err,
		Acts: []detector.Act{{Kind: detector.ActHostsDeny, Text: line, Present: o.present, Err: o.err}},
	}
}
