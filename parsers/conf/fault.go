package conf

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// A Place says where in a configuration something stands.
type Place struct {
	File string `json:"file,omitempty"` // as it was named to us
	Line int    `json:"line,omitempty"` // from 1; 0 when it concerns the whole file
	Key  string `json:"key,omitempty"`  // in the file's own dialect; may be empty
}

// String returns "file:line: key", without the parts that are not known.
func (p Place) String() string {
	s := p.File
	if p.Line > 0 {
		s += ":" + strconv.Itoa(p.Line)
	}
	switch {
	case s == "":
		return p.Key
	case p.Key == "":
		return s
	}
	return s + ": " + p.Key
}

func (p Place) explain(text string) string {
	if where := p.String(); where != "" {
		return where + ": " + text
	}
	return text
}

// A Fault is one thing that an administrator has to correct.
type Fault struct {
	Place
	Text     string `json:"text"`               // what is wrong and, when known, what to do
	Upstream string `json:"upstream,omitempty"` // the exact words of the PortSentry whose file it is; empty when it has none
	Err      error  `json:"-"`                  // the cause, when it lies outside the text; may be nil
}

// faultf returns a fault without a place.
func faultf(format string, args ...any) Fault { return Fault{Text: fmt.Sprintf(format, args...)} }

// Error returns the fault as one line: "file:line: key: text".
func (f Fault) Error() string { return f.explain(f.Text) }

// Unwrap returns the cause.
func (f Fault) Unwrap() error { return f.Err }

// Faults are all that was found wrong, in the order of the lines.
type Faults []Fault

// Error returns the faults, one on each line.
func (fs Faults) Error() string {
	var b strings.Builder
	for i, f := range fs {
		if i > 0 {
			b.WriteByte('\n')
		}
		b.WriteString(f.Error())
	}
	return b.String()
}

// Unreadable reports whether the file could not be read at all, so that nothing
// is known of what it says.
func (fs Faults) Unreadable() bool {
	return slices.ContainsFunc(fs, func(f Fault) bool { return f.Err != nil })
}

// OnlyPorts reports whether nothing but the ports to watch is wrong. PortSentry 1.2
// finds that out last, when its start has already succeeded.
func (fs Faults) OnlyPorts() bool {
	return !slices.ContainsFunc(fs, func(f Fault) bool { return !slices.Contains(portSentry1Ports, f.Key) })
}

// Unwrap returns every fault as an error.
func (fs Faults) Unwrap() []error {
	errs := make([]error, len(fs))
	for i, f := range fs {
		errs[i] = f
	}
	return errs
}

// A Warning is something that was accepted, but may not mean what its author
// thinks.
type Warning struct {
	Place
	Text     string `json:"text"`
	Upstream string `json:"upstream,omitempty"` // the exact words of the PortSentry whose file it is; empty when it has none
}

// String returns the warning as one line: "file:line: key: text".
func (w Warning) String() string { return w.explain(w.Text) }

// maxFindings bounds the faults, and the warnings, that one file may cause.
const maxFindings = 100

// A diagnosis collects what is found about one file.
type diagnosis struct {
	file     string
	places   map[string]Place // of native keys, also when another dialect sets them
	faults   Faults
	warnings []Warning
}

func newDiagnosis(file string) *diagnosis {
	return &diagnosis{file: file, places: make(map[string]Place)}
}

// at returns the place of a native key. A key that the file does not name
// stands where the nearest table around it does.
func (d *diagnosis) at(key string) Place {
	for outer := key; ; {
		if p, ok := d.places[outer]; ok {
			if outer != key {
				p.Key = key
			}
			return p
		}
		dot := strings.LastIndexByte(outer, '.')
		if dot < 0 {
			return Place{File: d.file, Key: key}
		}
		outer = outer[:dot]
	}
}

// fault records that what stands at p is wrong.
func (d *diagnosis) fault(p Place, format string, args ...any) {
	d.add(p, faultf(format, args...))
}

// addAll records faults at p which a setter found.
func (d *diagnosis) addAll(p Place, faults Faults) {
	for _, f := range faults {
		f.Upstream = "" // PortSentry has no such file
		d.add(p, f)
	}
}

// add records a fault at p.
func (d *diagnosis) add(p Place, f Fault) {
	switch len(d.faults) {
	case maxFindings:
		return
	case maxFindings - 1:
		f = Fault{Text: "too many faults; correct the ones above first"}
	}
	f.Place = p
	d.faults = append(d.faults, f)
}

// warn records that what stands at p may surprise.
func (d *diagnosis) warn(p Place, format string, args ...any) {
	d.addWarning(p, Warning{Text: fmt.Sprintf(format, args...)})
}

// addWarning records a warning at p.
func (d *diagnosis) addWarning(p Place, w Warning) {
	switch len(d.warnings) {
	case maxFindings:
		return
	case maxFindings - 1:
		w = Warning{Text: "too many warnings; this is the last one shown"}
	}
	w.Place = p
	d.warnings = append(d.warnings, w)
}

// err returns the faults in the order of their lines, or nil.
func (d *diagnosis) err() error {
	if len(d.faults) == 0 {
		return nil
	}
	slices.SortStableFunc(d.faults, func(a, b Fault) int { return cmp.Compare(a.Line, b.Line) })
	return d.faults
}
