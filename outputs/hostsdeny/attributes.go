package hostsdeny

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// copyAttributes gives to exactly the extended attributes of from. A new file
// may have some from its directory.
func copyAttributes(to, from *os.File) error {
	wanted, err := attributes(from)
	if err != nil {
		return err
	}
	had, err := attributes(to)
	if err != nil {
		return err
	}
	for _, name := range had {
		if slices.Contains(wanted, name) {
			continue
		}
		if err := unix.Fremovexattr(int(to.Fd()), name); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	value := make([]byte, maxAttribute)
	for _, name := range wanted {
		n, err := unix.Fgetxattr(int(from.Fd()), name, value)
		if err == nil {
			err = unix.Fsetxattr(int(to.Fd()), name, value[:n], 0)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return nil
}

// maxAttribute is the kernel's limit for a value and for a list of names.
const maxAttribute = 64 << 10

// attributes returns the names of a file's extended attributes.
func attributes(file *os.File) ([]string, error) {
	list := make([]byte, maxAttribute)
	n, err := unix.Flistxattr(int(file.Fd()), list)
	if errors.Is(err, unix.ENOTSUP) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return strings.FieldsFunc(string(list[:n]), func(r rune) bool { return r == 0 }), nil
}
